"""Cards of the Run screen: what a fix would change before it becomes a new run, what a finding means."""

from __future__ import annotations

from typing import ClassVar

from rich.console import RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from whet.engine import api

from ...render.fixes import entry_details, fixed_details


class PageCard(ModalScreen[bool]):
    """A page to read; with ``yes`` also a button that goes on."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n,q", "answer(False)", "close", id="page.close"),
        Binding("enter", "answer(True)", "go on", id="page.yes"),
    ]

    def __init__(self, title: str, page: RenderableType, yes: str = "") -> None:
        super().__init__()
        self.heading, self.page, self.yes = title, page, yes

    def compose(self) -> ComposeResult:
        with Vertical(classes="card"):
            yield Static(Text(self.heading, "bold"), classes="card-title")
            with VerticalScroll(classes="card-page"):
                yield Static(self.page)
            with Horizontal(classes="card-buttons"):
                if self.yes:
                    yield Button(f"{self.yes} (enter)", id="yes", variant="primary")
                yield Button("Close (esc)", id="no")

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, yes: bool) -> None:
        """By key."""
        self.dismiss(yes and bool(self.yes))


def fix_card(fixed: api.Fixed) -> PageCard:
    """The diff of a fix and what its plan finds; goes on only when something changes."""
    yes = "Open as a new run" if fixed.proposal.diff else ""
    return PageCard("A fix, as a new plan", fixed_details(fixed, None), yes)


def entry_card(entry: api.Entry) -> PageCard:
    """What a finding means."""
    return PageCard("What it means", entry_details(entry))
