"""A list of choices to tick with space or a click; what is ticked is seen without colour: ``[x]``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option


class CheckList(OptionList):
    """Entries have a name and a label; ``ticked`` holds names in the order of the list."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "select", "tick", show=False, id="checks.tick"),
        Binding("j", "cursor_down", "down", show=False, id="checks.down"),
        Binding("k", "cursor_up", "up", show=False, id="checks.up"),
    ]

    class Ticked(Message):
        """The ticks changed."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._labels: dict[str, Text] = {}
        self._ticks: set[str] = set()

    @property
    def ticked(self) -> list[str]:
        """Names that are ticked."""
        return [name for name in self._labels if name in self._ticks]

    def offer(self, entries: Iterable[tuple[str, Text]], ticked: Iterable[str] = ()) -> None:
        """Replace all entries."""
        self._labels, self._ticks = dict(entries), set(ticked)
        self.clear_options()
        self.add_options(Option(self._prompt(name), name) for name in self._labels)
        self.highlighted = 0 if self._labels else None

    def _prompt(self, name: str) -> Text:
        box = Text("[x] ", "bold green") if name in self._ticks else Text("[ ] ", "dim")
        return box.append_text(self._labels[name])

    @on(OptionList.OptionSelected)
    def _flip(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        name = str(event.option_id)
        self._ticks ^= {name}
        self.replace_option_prompt(name, self._prompt(name))
        self.post_message(self.Ticked())
