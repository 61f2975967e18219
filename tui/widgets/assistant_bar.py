"""One or two lines on every screen: what whet sees here, and what it would do next, with the key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.style import Style
from rich.text import Text
from textual.widgets import Static

from ..render.text import plain

LINES = 2


@dataclass(frozen=True)
class Advice:
    """One line of the bar."""

    text: str
    key: str = ""
    """The key that does it; none where there is nothing to do."""
    severity: str = "note"


MARKS = {"error": ("!", "bold red"), "warning": ("!", "bold yellow"), "note": ("›", "bold cyan")}


NAMES = {"esc": "escape", "/": "slash", "?": "question_mark", "]": "right_square_bracket"}
"""Keys that Textual calls otherwise."""


class AssistantBar(Static):
    """Shows the advice of its screen; a click on a key presses it."""

    DEFAULT_CLASSES = "assistant"

    def show(self, advice: Sequence[Advice]) -> None:
        """At most two lines, the first ones; a longer line is cut, never wrapped."""
        text = Text(no_wrap=True, overflow="ellipsis")
        for number, one in enumerate(advice[:LINES]):
            mark, style = MARKS[one.severity]
            text.append("\n" if number else "")
            text.append(f"{mark} ", style)
            if one.key:
                pressed = f"app.simulate_key('{NAMES.get(one.key, one.key)}')"
                text.append(f" {one.key} ", Style(reverse=True, meta={"@click": pressed}))
                text.append(" ")
            text.append(plain(one.text))
        self.update(text, layout=False)  # its height is fixed, and a new layout redraws the whole screen
