"""The tables of Compare: figures with the best marked, what differs in the recipes, answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...render.text import plain
from ...render.units import amount, clock, size
from ...widgets.run_table import LOOKS
from ..run.figures import number
from .compared import METRICS, Compared, Metric, best_of, differing

BEST, BEST_ASCII = "★", "*"
LEAST_COLUMN = 14
"""Characters of a value's column below which runs are listed under each key instead."""
KEY_COLUMN = 30
WIDE = 110
"""Columns from which each run has a row."""
ID_END = 5
"""Characters at the end of an id that differ for sure."""
LONGEST_ANSWER = 600
COLOURS = ("cyan", "yellow", "green", "red", "magenta", "white")

SHOWN: dict[str, Callable[[float], str]] = {
    "steps": lambda value: f"{value:.0f}",
    "tokens": amount,
    "loss": number,
    "held out": number,
    "tok/s": amount,
    "time": clock,
    "memory": size,
}


def letter(run: Compared) -> Text:
    """A run's letter in its colour."""
    return Text(run.letter, f"bold {COLOURS[ord(run.letter) - ord('A')]}")


def legend(runs: Sequence[Compared], width: int) -> Text:
    """Which letter is which run; long ids lose their middle, for their ends tell them apart."""
    text = Text(no_wrap=True, overflow="ellipsis")
    room = width // max(1, len(runs)) - 5
    for run in runs:
        name = plain(run.run_id)
        if len(name) > room:
            name = f"{name[: max(1, room - ID_END - 1)]}…{name[-ID_END:]}"
        text.append(letter(run)).append(f" {name}   ")
    return text


def metrics_table(runs: Sequence[Compared], width: int, *, ascii: bool = False) -> Table:
    """The best of each figure is bold and has a star: a row a run, or a column where there is less room."""
    star = BEST_ASCII if ascii else BEST
    figures = [_figures(metric, runs, star) for metric in METRICS]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    proofs = [Text(run.progress.verdict or "–") for run in runs]
    if width >= WIDE:
        for name in ("", "run"):
            table.add_column(name, no_wrap=True)
        for metric in METRICS:
            table.add_column(metric.name, justify="right", no_wrap=True)
        table.add_column("proof", no_wrap=True)
        for place, run in enumerate(runs):
            who = Text.assemble(_status(run), plain(run.run_id))
            table.add_row(letter(run), who, *(row[place] for row in figures), proofs[place])
        return table
    table.add_column("", style="dim", no_wrap=True)
    for run in runs:
        table.add_column(Text.assemble(_status(run), letter(run)), justify="right", no_wrap=True)
    for metric, row in zip(METRICS, figures, strict=True):
        table.add_row(metric.name, *row)
    table.add_row("proof", *proofs)
    return table


def _figures(metric: Metric, runs: Sequence[Compared], star: str) -> list[Text]:
    """One figure of all runs."""
    values = [metric.of(run.progress) for run in runs]
    best = best_of(metric, values)
    words = ["–" if value is None else SHOWN[metric.name](value) for value in values]
    return [
        Text(f"{word}{star if place in best else ' '}", "bold" if place in best else "")
        for place, word in enumerate(words)
    ]


def _status(run: Compared) -> Text:
    symbol, style = LOOKS[run.seen.summary.status] if run.seen is not None else ("…", "dim")
    return Text(f"{symbol} ", style)


def recipes_table(runs: Sequence[Compared], width: int) -> RenderableType:
    """Only the keys that differ: a column a run, or, where columns are few, a line a value."""
    known = [run for run in runs if run.settings]
    if len(known) < 2:
        return Text("Recipes show here once two of them are read.", "dim")
    rows = differing([run.settings or {} for run in known])
    if not rows:
        return Text("The recipes are the same, value for value.", "dim")
    if (width - KEY_COLUMN) // len(known) < LEAST_COLUMN:
        return _stacked(known, rows)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0), expand=True)
    table.add_column("", style="dim", no_wrap=True, overflow="ellipsis", max_width=KEY_COLUMN)
    for run in known:
        table.add_column(letter(run), overflow="fold", ratio=1)
    for key, values in rows.items():
        table.add_row(Text(key), *(Text(plain(value, 200)) for value in values))
    return table


def _stacked(runs: Sequence[Compared], rows: dict[str, list[str]]) -> Text:
    text = Text()
    for key, values in rows.items():
        text.append(f"{key}\n", "bold")
        for value in dict.fromkeys(values):
            text.append("  ")
            for run, own in zip(runs, values, strict=True):
                text.append(letter(run) if own == value else Text("·", "dim"))
            text.append(f"  {plain(value, 200)}\n")
    text.rstrip()
    return text


def answers_page(runs: Sequence[Compared], width: int) -> RenderableType:
    """Each prompt with the newest answer of every run, and that of the base model."""
    prompts = dict.fromkeys(prompt for run in runs for prompt in run.progress.prompts)
    if not prompts:
        return Text("None of these runs answered prompts.", "dim")
    parts: list[RenderableType] = []
    for prompt in prompts:
        parts.append(Text(plain(prompt, 200), "bold"))
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, answer in _answers(runs, prompt):
            table.add_row(name, answer)
        parts += [table, Text()]
    return Group(*parts)


def _answers(runs: Sequence[Compared], prompt: str) -> list[tuple[Text, Text]]:
    """The base model's first, once; then each run's newest."""
    said = []
    base = next(
        (run.progress.samples[0, prompt] for run in runs if (0, prompt) in run.progress.samples), None
    )
    if base is not None:
        said.append((Text("base", "dim"), Text(plain(base.answer, LONGEST_ANSWER), "dim")))
    for run in runs:
        mine = [step for step, asked in run.progress.samples if asked == prompt and step]
        if mine:
            newest = run.progress.samples[max(mine), prompt]
            said.append((letter(run), Text(plain(newest.answer, LONGEST_ANSWER))))
        else:
            said.append((letter(run), Text("not asked", "dim")))
    return said
