"""The list of runs."""

from __future__ import annotations

import time

from rich.table import Table

from whet.engine.api import RunSummary

from .text import plain
from .units import duration

COLOURS = {
    "running": "green",
    "waiting": "yellow",
    "queued": "yellow",
    "finished": "bold",
    "stopped": "cyan",
    "interrupted": "magenta",
    "failed": "red",
    "unreadable": "red",
}


def run_table(runs: list[RunSummary]) -> Table:
    """Newest first: id, status, steps, losses, age, by whom."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("run", "status", "step", "loss", "eval", "age", "by"):
        table.add_column(column, no_wrap=column in ("run", "status"))
    for run in runs:
        state = run.state
        status = f"[{COLOURS[run.status]}]{run.status}[/]"
        if run.status == "running" and state.phase:
            status += f" {state.phase}"
        steps = f"{state.step}/{state.total_steps}" if state.total_steps else ""
        age = duration(time.time() - state.created) if state.created else ""
        table.add_row(
            run.id, status, steps, _loss(state.loss), _loss(state.eval_loss), age, plain(state.started_by, 20)
        )
    return table


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
