"""Curves as they are drawn: thinned so that spikes stay, smoothed, with ticks people can read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from textual_plot.axis_formatter import NumericAxisFormatter

from .units import amount

Values = NDArray[np.float64]

MOST_POINTS = 400
"""Of a curve on the screen: more cost time and show nothing."""
LEAST_SPAN, SPANS = 5, 50
"""A smoothed value is the mean of at least so many steps, or of so small a part of the run."""


def finite(x: ArrayLike, y: ArrayLike) -> tuple[Values, Values]:
    """The points whose value is a number."""
    xs, ys = np.array(x, dtype=np.float64), np.array(y, dtype=np.float64)
    good = np.isfinite(xs) & np.isfinite(ys)
    return xs[good], ys[good]


def thin(x: Values, y: Values, most: int = MOST_POINTS) -> tuple[Values, Values]:
    """At most ``most`` points: of each stretch its lowest and its highest, in their order."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most // 2 + 1).astype(int)
    kept = [
        sorted({start + int(np.argmin(y[start:end])), start + int(np.argmax(y[start:end]))})
        for start, end in pairwise(edges)
    ]
    places = [place for pair in kept for place in pair]
    return x[places], y[places]


def smooth(y: Values) -> Values:
    """The mean of each value and those before it, over a fiftieth of the curve; as long as ``y``."""
    if len(y) == 0:
        return y
    span = max(LEAST_SPAN, len(y) // SPANS)
    sums = np.concatenate(([0.0], np.cumsum(y)))
    ends = np.arange(1, len(y) + 1)
    starts = np.maximum(0, ends - span)
    means: Values = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def logarithmic(x: Values, y: Values) -> tuple[Values, Values]:
    """Points above zero, their values as powers of ten."""
    return x[y > 0], np.log10(y[y > 0])


def rounded(value: float) -> float:
    """To four digits."""
    return float(f"{value:.4g}")


def tick(value: float) -> str:
    """A number on an axis: ``0.002``, ``2e-05``, ``1.25``, ``12.5k``."""
    if abs(value) >= 1000:
        return ("-" if value < 0 else "") + amount(abs(value))
    if value and abs(value) < 1e-3:
        return f"{value:.2g}"
    return f"{round(value, 6):g}"


def round_ticks(low: float, high: float, most: int, least: float = 0.0) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two numbers: at most ``most``, ``least`` apart."""
    room = max((high - low) / max(1, most), least)
    power = 10.0 ** math.floor(math.log10(room))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= room)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)][:most]


class Ticks(NumericAxisFormatter):
    """Round numbers in few characters; ``most`` says, whenever they are drawn, how many there is room for."""

    def __init__(self, most: Callable[[], int]) -> None:
        self.most = most

    def get_ticks(self, min_: float, max_: float, max_ticks: int = 8) -> list[float]:
        return round_ticks(min_, max_, self.most())

    def get_labels_for_ticks(self, ticks: Sequence[float]) -> list[str]:
        return [tick(value) for value in ticks]


class WholeTicks(Ticks):
    """Whole numbers: steps, tokens, seconds."""

    def get_ticks(self, min_: float, max_: float, max_ticks: int = 8) -> list[float]:
        return round_ticks(min_, max_, self.most(), least=1.0)


class PowerTicks(Ticks):
    """The axis of :func:`logarithmic`: whole powers of ten, where there are two; else round numbers."""

    def get_ticks(self, min_: float, max_: float, max_ticks: int = 8) -> list[float]:
        whole = [float(power) for power in range(math.ceil(min_), math.floor(max_) + 1)]
        return whole if 1 < len(whole) <= self.most() else super().get_ticks(min_, max_, max_ticks)

    def get_labels_for_ticks(self, ticks: Sequence[float]) -> list[str]:
        return [f"{10.0**power:.2g}" for power in ticks]
