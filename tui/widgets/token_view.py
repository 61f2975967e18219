"""Template X-ray: a row as the model will see it, token by token, with what is learnt of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.console import Group
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

if TYPE_CHECKING:
    from whet.engine.api import TemplatePreview


class TokenView(VerticalScroll):
    """One row at a time; `[` and `]` turn to the row before and the next."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right_square_bracket,l,right", "turn(1)", "row", key_display="]", id="tokens.next"),
        Binding("left_square_bracket,h,left", "turn(-1)", "row before", show=False, id="tokens.before"),
        Binding("j", "scroll_down", "down", show=False, id="tokens.down"),
        Binding("k", "scroll_up", "up", show=False, id="tokens.up"),
    ]

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.rows: Sequence[TemplatePreview] = ()
        self.at = 0

    def compose(self) -> ComposeResult:
        yield Static(id="tokens", markup=False)

    def show(self, rows: Sequence[TemplatePreview], empty: str = "") -> None:
        """Other rows; the place in them stays. ``empty``: what to say without any."""
        self.rows, self.at = rows, min(self.at, max(0, len(rows) - 1))
        if not rows:
            self.query_one("#tokens", Static).update(Text(empty, "dim"))
            return
        self._draw()

    def action_turn(self, by: int) -> None:
        """Another row; after the last comes the first."""
        if self.rows:
            self.at = (self.at + by) % len(self.rows)
            self._draw()
            self.scroll_home(animate=False)

    def _draw(self) -> None:
        from ..render.template import template_legend, template_preview

        head = Text.assemble((f"row {self.at + 1} of {len(self.rows)}", "bold"), ("   ", ""))
        head.append_text(template_legend(True))
        row = self.rows[self.at]
        preview = template_preview(row.model_copy(update={"file": Path(row.file).name}), True)
        self.query_one("#tokens", Static).update(Group(head, Text(), preview))
