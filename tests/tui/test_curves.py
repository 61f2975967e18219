"""Curves as they are drawn: spikes survive thinning, ticks are round, ASCII fits its room."""

from __future__ import annotations

import math

import numpy as np
import pytest

from whet.tui.render.ascii_plot import Dots, ascii_plot
from whet.tui.render.curves import finite, logarithmic, round_ticks, smooth, thin, tick


def test_thinning_keeps_ends_order_and_every_spike() -> None:
    x = np.arange(100_000.0)
    y = np.sin(x / 5000)
    y[[777, 50_000, 99_998]] = (9.0, -9.0, 8.0)
    thin_x, thin_y = thin(x, y, most=400)
    assert len(thin_x) <= 400 and np.all(np.diff(thin_x) > 0)
    assert {9.0, -9.0, 8.0} <= set(thin_y)
    assert all(y[int(place)] == value for place, value in zip(thin_x, thin_y, strict=True))


def test_few_points_are_left_alone() -> None:
    x = np.arange(10.0)
    assert thin(x, x, most=10)[0] is x


def test_smoothing_is_the_mean_of_the_last_values() -> None:
    y = np.array([4.0, 2.0, 6.0, 8.0, 0.0, 10.0])
    assert smooth(y).tolist() == [4.0, 3.0, 4.0, 5.0, 4.0, pytest.approx(26 / 5)]
    assert len(smooth(np.array([]))) == 0


def test_only_numbers_are_drawn_and_only_those_above_zero_on_a_log_scale() -> None:
    x, y = finite([1, 2, 3, 4], [1.0, math.nan, math.inf, 0.0])
    assert x.tolist() == [1, 4]
    assert [one.tolist() for one in logarithmic(x, y)] == [[1.0], [0.0]]


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0.0, 10.0, 5, [0, 2, 4, 6, 8]),
        (1.0, 60.0, 3, [20, 40, 60]),
        (0.03, 0.76, 4, [0.2, 0.4, 0.6]),
        (-1e-4, 1e-4, 3, [-1e-4, 0, 1e-4]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, most: int, expected: list[float]) -> None:
    found = round_ticks(low, high, most)
    assert found[: len(expected)] == pytest.approx(expected) and len(found) <= most


@pytest.mark.parametrize("most", range(1, 9))
def test_there_are_never_more_ticks_than_fit(most: int) -> None:
    for high in np.geomspace(1e-6, 1e9, 50):
        assert len(round_ticks(0.0, float(high), most)) <= most


def test_whole_ticks_are_at_least_one_apart() -> None:
    assert round_ticks(0.0, 2.0, 8, least=1.0) == [0, 1, 2]


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (0.002, "0.002"), (2e-5, "2e-05"), (12_500, "12.5k"), (-2000, "-2k"), (1.25, "1.25")],
)
def test_numbers_on_axes_are_short(value: float, words: str) -> None:
    assert tick(value) == words


def test_an_ascii_plot_fits_and_falls() -> None:
    x = np.arange(50.0)
    drawn = ascii_plot([Dots("*", x, 100 - x)], 60, 12, tick)
    lines = drawn.splitlines()
    assert len(lines) == 12 and max(map(len, lines)) <= 60 and drawn.isascii()
    assert lines[0].startswith("    100 |*") and lines[9].endswith("*") and lines[9].startswith("     51 |")


def test_a_constant_is_drawn_and_nothing_is_drawn_without_room() -> None:
    x = np.arange(3.0)
    assert "*" in ascii_plot([Dots("*", x, x * 0)], 40, 8, tick)
    assert ascii_plot([Dots("*", x, x)], 12, 8, tick) == ""
    assert ascii_plot([], 40, 8, tick) == ""
