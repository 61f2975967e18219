"""The recipe as YAML, with the lines that the last edit changed marked."""

from __future__ import annotations

import difflib
import re
import textwrap
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from ...render.text import printable
from .draft import Draft

KEY = re.compile(r"^(\s*)([A-Za-z_0-9]+)(:)(.*)$")
MARK = "▌"


class RecipeView(VerticalScroll):
    """Always as the draft is now."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "down", show=False, id="recipe.down"),
        Binding("k", "scroll_up", "up", show=False, id="recipe.up"),
    ]

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.draft: Draft | None = None
        self.seen = ""
        self.shown: object = None

    def compose(self) -> ComposeResult:
        yield Static(classes="recipe-text", markup=False)

    def on_mount(self) -> None:
        self.border_title = "recipe · e edits"

    def on_resize(self) -> None:
        if self.draft is not None:
            self.show(self.draft)

    def show(self, draft: Draft) -> None:
        """The text, and a word on one that was rejected."""
        self.draft = draft
        before = draft.history[-1].text if draft.history else draft.text
        width = max(20, self.scrollable_content_region.width)
        if (draft.text, before, width, draft.rejected) == self.shown:
            return
        self.shown = draft.text, before, width, draft.rejected
        text = yaml_text(draft.text, before, width) if draft.text else Text("The recipe appears here.", "dim")
        if draft.rejected is not None:
            text = Text("What came from the editor is no recipe; e opens it again.\n\n", "red").append_text(
                text
            )
        self.query_one(".recipe-text", Static).update(text)
        shown = text.plain.split("\n")
        changed = next((number for number, line in enumerate(shown) if line.startswith(MARK)), None)
        if changed is not None and text.plain != self.seen:
            self.scroll_to(y=max(0, changed - self.size.height // 2), animate=False)
        self.seen = text.plain


def yaml_text(text: str, before: str, width: int) -> Text:
    """Keys and comments set apart; ``▌`` marks lines that ``before`` did not have; long comments are wrapped.

    Args:
        text: the recipe.
        before: an earlier one.
        width: in cells.
    """
    new = changed_lines(before, text)
    shown = Text(no_wrap=True, overflow="ellipsis")
    lines = text.rstrip("\n").split("\n")
    number = 0
    while number < len(lines):
        if lines[number].lstrip().startswith("#"):
            end = next(
                (at for at in range(number, len(lines)) if not lines[at].lstrip().startswith("#")), len(lines)
            )
            for line in comment(lines[number:end], width - 1):
                shown.append(f" {printable(line)}\n", "dim italic")
            number = end
            continue
        shown.append(MARK if number in new else " ", "bold yellow")
        _setting(shown, printable(lines[number]), new=number in new)
        number += 1
    shown.rstrip()
    return shown


def comment(lines: list[str], width: int) -> list[str]:
    """A comment's lines as they are, or set anew where one is longer than ``width``."""
    if all(len(line) <= width for line in lines):
        return lines
    indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    words = " ".join(line.strip().removeprefix("#").strip() for line in lines)
    return textwrap.wrap(words, width, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _setting(shown: Text, line: str, *, new: bool) -> None:
    key = KEY.match(line)
    if key is None:
        shown.append(f"{line}\n")
        return
    shown.append(key[1])
    shown.append(key[2], "cyan")
    shown.append(key[3], "dim")
    shown.append(f"{key[4]}\n", "bold" if new else "")


def changed_lines(before: str, after: str) -> set[int]:
    """Numbers from 0 of the lines of ``after`` that are new or other than in ``before``."""
    matcher = difflib.SequenceMatcher(None, before.split("\n"), after.split("\n"), autojunk=False)
    return {
        number
        for kind, _, _, first, end in matcher.get_opcodes()
        if kind in ("insert", "replace")
        for number in range(first, end)
    }
