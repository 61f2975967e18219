"""Runs as a table: what each is doing, how far it is, who started it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.coordinate import Coordinate
from textual.widgets import DataTable

from ..render.text import plain
from ..render.units import age

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
    """Rows are keyed by run id; the cursor stays on its run while others come. Space marks to compare."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "down", show=False, id="table.down"),
        Binding("k", "cursor_up", "up", show=False, id="table.up"),
        Binding("space", "mark", "mark", show=False, id="table.mark"),
    ]

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id, cursor_type="row", zebra_stripes=True)
        self.marked: list[str] = []
        self._runs: Sequence[RunSummary] = ()

    def on_mount(self) -> None:
        self.add_columns("", "run", "what", "step", "loss", "by", "age")

    @property
    def chosen(self) -> str | None:
        """Id of the run under the cursor."""
        return (
            self._runs[self.cursor_row].id
            if self._runs and self.is_valid_row_index(self.cursor_row)
            else None
        )

    @property
    def trained(self) -> str | None:
        """Id of the run under the cursor; of a job, the run whose weights it is about."""
        if (chosen := self.chosen) is None:
            return None
        return self._runs[self.cursor_row].state.parent or chosen

    def show(self, runs: Sequence[RunSummary]) -> None:
        """Replace all rows; where they are of the same runs only what changed, so that nothing scrolls."""
        if [run.id for run in runs] == [run.id for run in self._runs]:
            self._update(runs)
            return
        chosen, row = self.chosen, self.cursor_row
        self._runs = runs
        ids = [run.id for run in runs]
        self.marked = [id for id in self.marked if id in ids]
        self.clear()
        rows = [self._cells(run) for run in runs]
        self._fit(rows)
        for run, cells in zip(runs, rows, strict=True):
            self.add_row(*cells, key=run.id)
        if ids:
            self.move_cursor(row=ids.index(chosen) if chosen in ids else min(row, len(ids) - 1))

    def _update(self, runs: Sequence[RunSummary]) -> None:
        self._runs = runs
        rows = [self._cells(run) for run in runs]
        self._fit(rows)
        for row, cells in enumerate(rows):
            for column, cell in enumerate(cells):
                place = Coordinate(row, column)
                if cell != self.get_cell_at(place):
                    self.update_cell_at(place, cell, update_width=True)

    def _fit(self, rows: Sequence[tuple[Text, ...]]) -> None:
        """Widths now: a table that finds them when idle may have been painted before, and keeps that."""
        for place, column in enumerate(self.ordered_columns):
            column.auto_width = False
            column.width = max([column.label.cell_len, *(cells[place].cell_len for cells in rows)])

    def action_mark(self) -> None:
        """Mark the run under the cursor, or unmark it."""
        if (chosen := self.chosen) is None:
            return
        if chosen in self.marked:
            self.marked.remove(chosen)
        else:
            self.marked.append(chosen)
        self.update_cell_at(Coordinate(self.cursor_row, 0), self._mark(self._runs[self.cursor_row]))

    def _mark(self, run: RunSummary) -> Text:
        symbol, style = LOOKS[run.status]
        return Text("▶" if run.id in self.marked else " ", "bold").append(symbol, style)

    def _cells(self, run: RunSummary) -> tuple[Text, ...]:
        state = run.state
        steps = f"{state.step}/{state.total_steps or '?'}" if state.step else run.status
        return (
            self._mark(run),
            Text(plain(run.id, 40)),
            Text(state.method),
            Text(steps, justify="right"),
            Text("" if state.loss is None else f"{state.loss:.3f}", justify="right"),
            Text(plain(state.started_by, 16)),
            Text(age(time.time() - state.created), justify="right"),
        )
