"""Runs as a table: what each is doing, how far it is, who started it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widgets import DataTable

from ..render.text import plain

if TYPE_CHECKING:
    from whet.engine.api import RunSummary

LOOKS = {
    "running": ("●", "green"),
    "queued": ("◌", "cyan"),
    "waiting": ("◌", "yellow"),
    "finished": ("✓", "green"),
    "stopped": ("‖", "yellow"),
    "interrupted": ("‖", "yellow"),
    "failed": ("✗", "red"),
    "unreadable": ("?", "red"),
}


class RunTable(DataTable[Text]):
    """Rows are keyed by run id; the cursor stays on its run while others come."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "down", show=False, id="table.down"),
        Binding("k", "cursor_up", "up", show=False, id="table.up"),
    ]

    def on_mount(self) -> None:
        self.cursor_type = "row"
        self.zebra_stripes = True
        self.add_columns("", "run", "step", "loss", "by", "age")

    def show(self, runs: Sequence[RunSummary]) -> None:
        """Replace all rows."""
        row = self.cursor_row
        selected = (
            self.coordinate_to_cell_key(self.cursor_coordinate).row_key.value if self.row_count else None
        )
        self.clear()
        for run in runs:
            mark, style = LOOKS[run.status]
            state = run.state
            loss = "" if state.loss is None else f"{state.loss:.3f}"
            self.add_row(
                Text(mark, style),
                Text(plain(run.id, 44)),
                Text(
                    f"{state.step}/{state.total_steps or '?'}" if state.step else run.status, justify="right"
                ),
                Text(loss, justify="right"),
                Text(plain(state.started_by, 20)),
                Text(age(time.time() - state.created), justify="right"),
                key=run.id,
            )
        ids = [run.id for run in runs]
        if ids:
            self.move_cursor(row=ids.index(selected) if selected in ids else min(row, len(ids) - 1))


def age(seconds: float) -> str:
    """How long ago, in one unit: ``40 s``, ``3 min``, ``5 h``, ``12 d``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
