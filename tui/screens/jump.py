"""Jump mode: a letter on everything on the screen that takes the focus; pressing it goes there."""

from __future__ import annotations

from string import ascii_lowercase
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.widgets import Label

LETTERS = "asdfghjkl" + "".join(letter for letter in ascii_lowercase if letter not in "asdfghjkl")


class JumpScreen(ModalScreen[None]):
    """Lies over ``below`` and lets it shine through; any other key closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "close", id="jump.close")]

    def __init__(self, below: Screen[object]) -> None:
        super().__init__()
        seen = [one for one in below.focus_chain if one.region.area and below.region.overlaps(one.region)]
        self.places: dict[str, Widget] = dict(zip(LETTERS, seen, strict=False))

    def compose(self) -> ComposeResult:
        for letter, place in self.places.items():
            label = Label(f" {letter} ", classes="jump")
            label.styles.offset = (place.region.x, place.region.y)
            yield label

    def on_key(self, event: events.Key) -> None:
        event.stop()
        place = self.places.get(event.key)
        self.dismiss()
        if place is not None:
            place.focus()

    def on_click(self) -> None:
        self.dismiss()
