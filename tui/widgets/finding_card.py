"""Findings one can act on: lines for lists, and a card with evidence, reason and what a fix changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, OptionList, Static

from ..render.text import plain, printable

if TYPE_CHECKING:
    from whet.engine.api import Finding

MARKS = {"error": ("✗", "bold red"), "warning": ("!", "bold yellow"), "note": ("›", "blue")}
ORDER = {"error": 0, "warning": 1, "note": 2}
SECTION = re.compile(r"^ [a-z_]+:\s*$")
LONGEST_DIFF = 200
"""Lines of a diff that are shown."""


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Errors, warnings, notes."""
    return sorted(findings, key=lambda finding: ORDER[finding.severity])


def fixable(findings: Sequence[Finding]) -> list[Finding]:
    """Those a key can fix, worst first."""
    return [one for one in worst_first(findings) if one.fix is not None and one.fix.patch]


def finding_line(finding: Finding) -> RenderableType:
    """Mark, id and fact; below it the fix, with ``a`` where the key does it."""
    mark, style = MARKS[finding.severity]
    text = Text(plain(finding.title, 300))
    if finding.fix is not None:
        text.append("\n")
        if finding.fix.patch:
            text.append(" a ", "reverse")
            text.append(" ")
        text.append(plain(finding.fix.text, 300), "dim")
    return hanging(Text(f"{mark} {finding.id}", style), text)


def hanging(head: Text, text: Text, width: int = 6) -> RenderableType:
    """``text`` beside a head of ``width`` cells; what is wrapped stays to the right of it."""
    table = Table.grid(padding=(0, 1))
    table.add_column(width=width, no_wrap=True)
    table.add_column()
    table.add_row(head, text)
    return table


def diff_text(diff: str) -> Text:
    """What a unified diff adds and takes, in colours and with its signs, each under its section's name."""
    text, section = Text(), ""
    for line in diff.splitlines()[:LONGEST_DIFF]:
        if line[:1] in ("+", "-") and not line.startswith(("---", "+++")):
            text.append(section, "dim")
            text.append(f"{printable(line)}\n", "green" if line[0] == "+" else "red")
            section = ""
        elif SECTION.match(line):
            section = f"{printable(line)}\n"
    text.rstrip()
    return text


class StepList(OptionList):
    """A list with vim's keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "down", show=False, id="list.down"),
        Binding("k", "cursor_up", "up", show=False, id="list.up"),
    ]


class FindingCard(ModalScreen[bool]):
    """True: apply the fix.

    Args:
        finding: what was found.
        diff: what its patch changes in the recipe; empty where it has none.
        effect: plans the fixed recipe, on a thread, and says what is better then.
        why: of the catalogue, why it matters.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a,enter", "answer(True)", "apply", id="finding.apply"),
        Binding("escape,q,n", "answer(False)", "close", id="finding.close"),
    ]

    def __init__(
        self, finding: Finding, diff: str = "", effect: Callable[[], str] | None = None, why: str = ""
    ) -> None:
        super().__init__()
        self.finding, self.diff, self.effect, self.why = finding, diff, effect, why

    def compose(self) -> ComposeResult:
        from ..render.findings import finding_text

        with Vertical(classes="card"):
            with VerticalScroll(classes="card-body"):
                parts = [finding_text(self.finding)]
                if self.diff:
                    parts += [Text("\nwhat the fix changes", "bold"), diff_text(self.diff)]
                if self.why:
                    parts.append(Text(f"\n{self.why}", "dim"))
                yield Static(Group(*parts))
            yield Static("", id="effect", markup=False)
            with Horizontal(classes="card-buttons"):
                if self.diff:
                    yield Button("Apply (a)", id="apply", variant="primary")
                yield Button("Close (esc)", id="close")

    def on_mount(self) -> None:
        effect = self.effect
        if effect is None or not self.diff:
            return
        self.query_one("#effect", Static).update("looking at what it would change …")

        def look() -> None:
            said = effect()
            if self.is_attached:
                self.app.call_from_thread(self.query_one("#effect", Static).update, printable(said))

        self.run_worker(look, thread=True, exit_on_error=False)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.action_answer(event.button.id == "apply")

    def action_answer(self, apply: bool) -> None:
        """Apply where there is something to apply."""
        self.dismiss(apply and bool(self.diff))
