"""A run in figures: the status line, and the column beside the curves."""

from __future__ import annotations

import math

from rich.table import Table
from rich.text import Text

from whet.engine import api

from ...render.text import plain
from ...render.units import amount, clock, size
from ...run_state import PHASES, RunProgress
from ...widgets.run_table import LOOKS
from .look import Look

GIB = 1 << 30
LONGEST_NAME = 12
FULL, EMPTY = "█", "░"
FULL_ASCII, EMPTY_ASCII = "#", "."
LEAST_BAR, BAR = 6, 24
GAP = 5
"""Columns between the words and the bar, and at the edges."""
AFTERWARDS = ("merge", "export", "smoke")
"""Phases that follow training."""
Rows = list[tuple[str, Text]]


def bar(share: float, width: int, *, ascii: bool = False) -> str:
    """``share`` of a bar filled."""
    filled = round(width * min(1.0, max(0.0, share)))
    full, empty = (FULL_ASCII, EMPTY_ASCII) if ascii else (FULL, EMPTY)
    return full * filled + empty * (width - filled)


def number(value: float) -> str:
    """A loss or norm; ``nan`` and ``inf`` stand out by themselves."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"


def seconds_left(look: Look, progress: RunProgress) -> float | None:
    """Of training; None once that is over, or nothing runs."""
    training = look.summary.status == "running" and progress.phase not in AFTERWARDS
    return (progress.pace.seconds_left or None) if training else None


def status_line(look: Look, progress: RunProgress, width: int, *, ascii: bool = False) -> Text:
    """Status, phase, how far, how long still."""
    status, state = look.summary.status, look.summary.state
    symbol, style = LOOKS[status]
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{symbol} {status}", f"bold {style}")
    if status == "running" and progress.phase is None:
        text.append(" · starting")
    elif status == "running" and progress.phase:
        span = progress.phases[progress.phase]
        text.append(f" · {PHASES[progress.phase]}")
        if progress.phase != "train" and span.detail:
            text.append(f" {plain(span.detail, 40)}", "dim")
        if progress.phase != "train" and span.share is not None:
            text.append(f" {span.share:.0%}")
    if look.asked:
        words = "stopping after this step" if look.asked == "checkpoint" else "ending at once"
        text.append(f" · {words}", "bold yellow")
    if progress.last is not None:
        last, left = progress.last, seconds_left(look, progress)
        words = f" step {last.step}/{last.total_steps}"
        words += f" · {clock(left)} left" if left is not None else ""
        room = width - text.cell_len - len(words) - GAP
        text.append("   ")
        if room >= LEAST_BAR:
            drawn = bar(last.step / last.total_steps, min(BAR, room), ascii=ascii)
            text.append(drawn, "cyan" if look.active else "dim")
        text.append(words, "bold")
    elif state.total_steps:
        text.append(f"   step {state.step}/{state.total_steps}")
    return text


def figure_rows(look: Look, progress: RunProgress, plan: api.Plan | None, *, ascii: bool = False) -> Rows:
    """Names and values; only what is known, the phases last."""
    rows = [*_training(progress), *_memory(look, progress, plan, ascii), *_state(look, progress)]
    for phase, span in progress.phases.items():
        going = phase == progress.phase and look.active
        mark = "●" if going else "✓"
        share = "" if span.share is None or not going else f" {span.share:.0%}"
        spent = clock(progress.spent(phase, look.now if look.active else progress.newest))
        rows.append((phase, Text(f"{mark} {spent}{share}", "green" if going else "")))
    return rows


def columns(rows: Rows) -> Table:
    """Names on the left, values on the right."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True, min_width=8)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for name, value in rows:
        table.add_row(Text(name), value)
    return table


def _training(progress: RunProgress) -> Rows:
    last, pace = progress.last, progress.pace
    rows: Rows = []
    if last is not None:
        rows += [
            ("step", Text(f"{last.step}/{last.total_steps}", "bold")),
            ("epoch", Text(f"{last.epoch:.2f}")),
            ("loss", Text(number(pace.loss), "bold" if math.isfinite(pace.loss) else "bold red")),
        ]
    rows += [*_held_out(progress), *_measured(progress)]
    if last is not None:
        rows += [
            ("rate", Text(f"{last.learning_rate:.3g}")),
            ("gradient", Text(number(last.grad_norm))),
            ("speed", Text(f"{amount(pace.tokens_per_second)} tok/s")),
            ("a step", Text(f"{pace.seconds_per_step:.2f} s")),
        ]
    return rows


def _held_out(progress: RunProgress) -> Rows:
    if not progress.evals:
        return []
    newest, best = progress.evals[max(progress.evals)], progress.best_eval
    rows: Rows = [("held out", Text(number(newest.loss), "bold"))]
    if best is not None and best is not newest:
        rows.append(("best", Text(f"{number(best.loss)} at {best.step}")))
    return rows


def _measured(progress: RunProgress) -> Rows:
    """The method's own metrics: the first value and the newest one."""
    rows: Rows = []
    for name, (first, newest) in progress.measures.items():
        value = Text(f"{first:.3f}→" if first != newest else "", "dim")
        value.append(f"{newest:.3f}", "not dim bold")
        rows.append((plain(name.rpartition("/")[2], LONGEST_NAME), value))
    return rows


def _memory(look: Look, progress: RunProgress, plan: api.Plan | None, ascii: bool) -> Rows:
    rows: Rows = []
    if progress.peak_memory:
        rows.append(("memory", Text(f"{size(progress.peak_memory)} peak")))
        if plan is not None:
            rows.append(("planned", Text(size(plan.memory.allocated))))
    for gpu in look.held:
        used = gpu.memory_total - gpu.memory_free
        busy = "" if gpu.utilization is None else f"{gpu.utilization}% busy"
        heat = "" if gpu.temperature is None else f"{gpu.temperature} °C"
        name = "GPU" if len(look.held) == 1 else f"GPU {gpu.index}"
        rows.append((name, Text(" ".join(filter(None, (busy, heat))))))
        full = bar(used / gpu.memory_total, 6, ascii=ascii)
        rows.append(("", Text(f"{full} {used / GIB:.0f}/{gpu.memory_total / GIB:.0f} GiB")))
        rows += [("slowed", Text(why, "yellow")) for why in gpu.slowed_by]
    return rows


def _state(look: Look, progress: RunProgress) -> Rows:
    state, rows = look.summary.state, Rows()
    if progress.began is not None:
        until = look.now if look.active else progress.newest
        rows.append(("time", Text(clock(max(0.0, until - progress.began)))))
    left = seconds_left(look, progress)
    if left is not None:
        rows.append(("left", Text(clock(left), "bold")))
    if progress.checkpoints:
        newest = max(progress.checkpoints)
        rows.append(("saved", Text(f"step {newest}")))
    if state.attempt > 1:
        rows.append(("attempt", Text(str(state.attempt))))
    return rows
