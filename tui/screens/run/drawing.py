"""A run's columns as the lines of one plot, and what its title says beside the name."""

from __future__ import annotations

from dataclasses import dataclass

from ...render.curves import finite, rounded, smooth, tick
from ...run_state import RunProgress
from ...widgets.curve import Line

EVAL, EVAL_ASCII = "◆", "E"
MOST_MARKS = 20
"""More held-out losses than that are a line with some marks."""


@dataclass(frozen=True)
class Drawn:
    """What :meth:`Curve.show` takes."""

    lines: list[Line]
    title: str


def curve_of(progress: RunProgress, name: str, *, smoothed: bool, ascii: bool) -> Drawn:
    """One of the curves by the name of its column; a schedule has no noise to smooth."""
    curves = progress.curves
    x, y = finite(curves.step, curves.values(name))
    mean = smoothed and name != "learning_rate"
    lines = [Line(x, y, "raw"), Line(x, smooth(y))] if mean else [Line(x, y)]
    title = f"  {tick(rounded(y[-1]))}" if len(y) else ""
    if name == "loss":
        more, words = _of_loss(progress, EVAL_ASCII if ascii else EVAL)
        lines += more
        title += words
    return Drawn(lines, title)


def metric_of(progress: RunProgress, name: str, *, smoothed: bool, ascii: bool) -> Drawn:
    """A metric: of evaluations a line with a mark at each, of steps as the loss is drawn."""
    held_out = progress.metrics.get(name)
    values = held_out or progress.step_metrics.get(name, {})
    x, y = finite(list(values), list(values.values()))
    title = tick(rounded(y[-1])) if len(y) else ""
    if held_out is None:
        lines = [Line(x, y, "raw"), Line(x, smooth(y))] if smoothed else [Line(x, y)]
        return Drawn(lines, f"  {title}")
    mark = EVAL_ASCII if ascii else EVAL
    marks = Line(x, y, "eval", mark)
    return Drawn([Line(x, y, "eval"), marks] if len(x) > 1 else [marks], f"   {mark} {title}")


def _of_loss(progress: RunProgress, mark: str) -> tuple[list[Line], str]:
    """Held-out losses as marks, and what is odd about the curve."""
    steps = sorted(progress.evals)
    x, y = finite(steps, [progress.evals[step].loss for step in steps])
    words = f"   {mark} held out {tick(rounded(y[-1]))}" if len(y) else ""
    if progress.resumed_at:
        words += f"   | resumed at {', '.join(map(str, progress.resumed_at))}"
    if progress.curves.not_finite:
        words += f"   no number at step {progress.curves.not_finite[0]}"
    every = max(1, len(x) // MOST_MARKS)
    lines = [Line(x[::-every][::-1], y[::-every][::-1], "eval", mark)] if len(y) else []
    return ([Line(x, y, "eval"), *lines] if every > 1 else lines), words
