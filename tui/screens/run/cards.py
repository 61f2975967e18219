"""Cards of the Run screen: what a fix would change before it becomes a new run, what a finding means."""

from __future__ import annotations

from typing import ClassVar

from rich.console import Group, RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from whet.engine import api

from ...render.findings import findings_block
from ...render.fixes import entry_details
from ...render.text import plain
from ...widgets.finding_card import diff_text


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


def fix_card(finding: api.Finding, fixed: api.Fixed) -> PageCard:
    """The diff of a fix and what its plan finds; goes on only when something changes."""
    diff = fixed.proposal.diff
    left = [one for one in fixed.left if one.severity != "note"]
    parts: list[RenderableType] = [
        Text(plain(finding.fix.text) if finding.fix else ""),
        Text(),
        diff_text(diff) if diff else Text("The recipe says so already: nothing changes."),
        Text("\nleft in the new plan" if left else "\nThe new plan has no error and no warning.", "bold"),
        *([findings_block(left)] if left else []),
    ]
    return PageCard(f"{finding.id}, as a new plan", Group(*parts), "Open as a new run" if diff else "")


def entry_card(entry: api.Entry) -> PageCard:
    """What a finding means."""
    return PageCard("What it means", entry_details(entry))
