"""What rewards make of answers: one line a reward, then one a row."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from whet.engine.api import RewardTrial

from .text import plain

SHOWN = 60
"""Characters of an answer."""


def reward_trial(trial: RewardTrial) -> RenderableType:
    """Two tables: the rewards over all rows, and the rows by their total, highest first."""
    rewards = _table("reward", "weight", "rows", "mean", "spread", "lowest", "highest", "seconds")
    for one in trial.rewards:
        measured = (one.mean, one.spread, one.lowest, one.highest)
        rewards.add_row(
            Text(plain(one.name)),
            f"{one.weight:g}",
            str(one.applied),
            *map(_number, measured),
            f"{one.seconds:.2f}",
        )
    names = [one.name for one in trial.rewards]
    rows = _table("line", "total", *names, "answer")
    for row in sorted(trial.rows, key=lambda one: -one.total):
        values = [_number(row.values[name]) for name in names]
        rows.add_row(str(row.line), _number(row.total), *values, Text(_beginning(row.completion)))
    return Group(rewards, "", rows)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        words = column in ("reward", "answer")
        table.add_column(Text(plain(column)), justify="left" if words else "right", no_wrap=not words)
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _beginning(text: str) -> str:
    line = " ".join(plain(text).split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
