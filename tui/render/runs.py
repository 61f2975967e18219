"""The list of runs."""

from __future__ import annotations

import time

from rich.table import Table
from rich.text import Text

from whet.engine.api import RunSummary

from .text import plain
from .units import age

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
    table.add_column("run", overflow="fold", min_width=25)  # an id is for copying: never cut
    table.add_column("status", no_wrap=True)
    for column in ("step", "loss", "eval", "age"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("by", no_wrap=True)
    for run in runs:
        state = run.state
        status = Text(run.status, style=COLOURS[run.status])
        if run.status == "running" and state.phase:
            status.append(f" {state.phase}", style="dim")
        steps = f"{state.step}/{state.total_steps}" if state.total_steps else ""
        since = age(time.time() - state.created) if state.created else ""
        words = (steps, _loss(state.loss), _loss(state.eval_loss), since, plain(state.started_by, 20))
        table.add_row(Text(run.id), status, *map(Text, words))
    return table


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
