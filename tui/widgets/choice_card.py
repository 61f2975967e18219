"""A card with one list to choose from, and a card with one line to type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from ..render.text import plain


class ChoiceCard(ModalScreen[str | None]):
    """Gives the value chosen; None where it was closed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss", "close", id="choice.close"),
        Binding("j", "down", "down", show=False, id="choice.down"),
        Binding("k", "up", "up", show=False, id="choice.up"),
    ]

    def __init__(self, title: str, help: str, choices: Sequence[tuple[str, str]], now: str) -> None:
        super().__init__()
        self.words, self.choices, self.now = (title, help), choices, now

    def compose(self) -> ComposeResult:
        with Vertical(classes="card"):
            yield Static(Text(plain(self.words[0]), "bold"), classes="card-title")
            if self.words[1]:
                yield Static(Text(plain(self.words[1]), "dim"), classes="card-title")
            yield OptionList(*(Option(self._line(value, note)) for value, note in self.choices))
            yield Static(Text("enter takes it · esc closes", "dim"))

    def on_mount(self) -> None:
        values = [value for value, _ in self.choices]
        self.query_one(OptionList).highlighted = values.index(self.now) if self.now in values else 0

    def _line(self, value: str, note: str) -> Text:
        mark = "●" if value == self.now else " "
        return Text.assemble(f"{mark} {plain(value)}", (f"  {plain(note)}" if note else "", "dim"))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self.choices[event.option_index][0])

    def action_down(self) -> None:
        """The next line."""
        self.query_one(OptionList).action_cursor_down()

    def action_up(self) -> None:
        """The line before."""
        self.query_one(OptionList).action_cursor_up()


class LineCard(ModalScreen[str | None]):
    """Gives what was typed; None where it was closed."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "close", id="line.close")]

    def __init__(self, title: str, help: str, now: str = "", placeholder: str = "") -> None:
        super().__init__()
        self.words, self.now, self.placeholder = (title, help), now, placeholder

    def compose(self) -> ComposeResult:
        with Vertical(classes="card"):
            yield Static(Text(plain(self.words[0]), "bold"), classes="card-title")
            yield Static(Text(plain(self.words[1]), "dim"), classes="card-title")
            yield Input(self.now, placeholder=self.placeholder)
            yield Static(Text("enter takes it · esc closes", "dim"))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)
