"""A file browser for data: folders and files that can be read, nothing else; Enter opens or chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from ..render.text import plain
from ..render.units import size

Kind = Literal["data", "up", "whole", "folder", "file"]
LONGEST_TITLE = 44
MOST = 500
"""Entries of a folder that are listed."""


@dataclass(frozen=True)
class Entry:
    """One line of the browser."""

    kind: Kind
    label: str
    value: str
    """What choosing it gives: a path, or a name that is no path (``demo``)."""
    note: str = ""


def entries_of(folder: Path, suffixes: Sequence[str], first: Sequence[Entry] = ()) -> list[Entry]:
    """What to show of a folder: ``first``, the way up, itself where it holds data, folders, files.

    Raises OSError where it cannot be read.
    """
    found = sorted(folder.iterdir(), key=lambda path: path.name.lower())
    seen = [path for path in found if not path.name.startswith(".")][:MOST]
    folders = [path for path in seen if path.is_dir()]
    files = [path for path in seen if path.suffix.lower() in suffixes and path.is_file()]
    entries = list(first)
    if folder != folder.parent:
        entries.append(Entry("up", "..", str(folder.parent)))
    if len(files) > 1:
        entries.append(
            Entry(
                "whole",
                "this folder",
                str(folder),
                f"the {len(files)} files here and those deeper, as one data set",
            )
        )
    entries += [Entry("folder", f"{path.name}/", str(path)) for path in folders]
    entries += [Entry("file", path.name, str(path), size(path.stat().st_size)) for path in files]
    if not files and not folders:
        entries.append(Entry("folder", "(no data files here)", str(folder), " ".join(suffixes)))
    return entries


class FileBrowser(OptionList):
    """Posts :class:`Chosen` and, as the cursor moves, :class:`Looked`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "down", show=False, id="files.down"),
        Binding("k", "cursor_up", "up", show=False, id="files.up"),
        Binding("h,left,backspace", "parent", "folder above", show=False, id="files.parent"),
        Binding("l,right", "select", "open", show=False, id="files.open"),
    ]

    class Chosen(Message):
        """This is the data."""

        def __init__(self, value: str) -> None:
            super().__init__()
            self.value = value

    class Looked(Message):
        """The cursor is on this; None where there is nothing to look at."""

        def __init__(self, value: str | None) -> None:
            super().__init__()
            self.value = value

    def __init__(
        self, folder: Path, suffixes: Sequence[str] = (), first: Sequence[Entry] = (), id: str | None = None
    ) -> None:
        super().__init__(id=id)
        self.folder, self.suffixes, self.first = folder, suffixes, first
        self.entries: list[Entry] = []

    def on_mount(self) -> None:
        self.go(self.folder)

    def go(self, folder: Path) -> None:
        """Show a folder; one that cannot be read is said and not entered."""
        try:
            entries = entries_of(folder, self.suffixes, self.first)
        except OSError as error:
            why = f"{plain(str(folder))}: {error.strerror}"
            self.app.notify(why, severity="warning", timeout=4, markup=False)
            return
        came_from, self.folder, self.entries = self.folder, folder, entries
        self.clear_options()
        self.add_options([Option(_line(entry)) for entry in entries])
        self.border_title = Text(end_of(str(folder)))  # never markup
        values = [entry.value for entry in entries]
        first_folder = next((n for n, one in enumerate(entries) if one.kind not in ("data", "up")), 0)
        above = came_from in folder.iterdir() if came_from != folder else False
        self.highlighted = values.index(str(came_from)) if above and str(came_from) in values else (
            0 if self.first and came_from == folder else first_folder
        )  # fmt: skip

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        entry = self.entries[event.option_index]
        self.post_message(self.Looked(entry.value if entry.kind in ("data", "whole", "file") else None))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        entry = self.entries[event.option_index]
        if entry.kind in ("up", "folder"):
            self.go(Path(entry.value))
        else:
            self.post_message(self.Chosen(entry.value))

    def action_parent(self) -> None:
        """The folder above."""
        self.go(self.folder.parent)


def end_of(path: str, length: int = LONGEST_TITLE) -> str:
    """A path, or its end where it is longer."""
    words = plain(path)
    return words if len(words) <= length else f"…{words[1 - length :]}"


def _line(entry: Entry) -> Text:
    style = {"data": "bold", "folder": "cyan", "up": "cyan", "whole": "italic"}.get(entry.kind, "")
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(plain(entry.label, 60), style)
    if entry.note:
        text.append(f"  {plain(entry.note, 60)}", "dim")
    return text
