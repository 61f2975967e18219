"""A plot of ASCII characters alone, for terminals and fonts without more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .curves import Values

MARGIN = 8
"""Columns left of the axis, for numbers."""


@dataclass(frozen=True)
class Dots:
    """Points drawn with one character; later ones cover earlier ones."""

    char: str
    x: Values
    y: Values


def ascii_plot(dots: Sequence[Dots], width: int, height: int, label: Callable[[float], str]) -> str:
    """``height`` lines of at most ``width`` characters; empty without a point or without room."""
    drawn = [one for one in dots if len(one.x)]
    columns, rows = width - MARGIN - 1, height - 2
    if not drawn or columns < 8 or rows < 2:
        return ""
    left, right = _range([one.x for one in drawn])
    low, high = _range([one.y for one in drawn])
    cells = np.full((rows, columns), " ")
    for one in drawn:
        across = np.rint((one.x - left) / (right - left) * (columns - 1)).astype(int)
        down = np.rint((high - one.y) / (high - low) * (rows - 1)).astype(int)
        cells[down, across] = one.char
    # Numbers stand at the top, in the middle and at the bottom.
    named = {0: high, rows // 2: high - (high - low) * (rows // 2) / (rows - 1), rows - 1: low}
    lines = [f"{'':{MARGIN - 1}} |{''.join(row)}" for row in cells]
    for row, value in named.items():
        lines[row] = f"{label(float(f'{value:.3g}')):>{MARGIN - 1}}" + lines[row][MARGIN - 1 :]
    ends = f"{left:g}", f"{right:g}"
    lines.append(" " * MARGIN + "+" + "-" * columns)
    lines.append(" " * (MARGIN + 1) + ends[0] + f"{ends[1]:>{columns - len(ends[0])}}")
    return "\n".join(line.rstrip() for line in lines)


def _range(values: Sequence[Values]) -> tuple[float, float]:
    """Lowest and highest; never the same."""
    low = min(float(one.min()) for one in values)
    high = max(float(one.max()) for one in values)
    if low == high:
        room = abs(low) / 10 or 0.5
        return low - room, high + room
    return low, high
