"""Best-fit decreasing bins."""

from __future__ import annotations

import random

import pytest

from whet.engine.data.packing import pack
from whet.engine.errors import WhetError


def test_rows_share_bins_by_best_fit() -> None:
    assert pack([5, 5, 3, 2, 5], 10) == [[0, 1], [2, 3, 4]]
    assert pack([], 10) == []
    assert pack([10, 1], 10) == [[0], [1]]


def test_every_row_once_and_nothing_overflows() -> None:
    lengths = [random.Random(7).randint(1, 300) for _ in range(2000)]
    bins = pack(lengths, 512)
    assert sorted(row for rows in bins for row in rows) == list(range(2000))
    assert all(sum(lengths[row] for row in rows) <= 512 for rows in bins)
    assert len(bins) <= sum(lengths) / 512 * 11 / 9 + 1
    assert bins == pack(lengths, 512)


def test_a_row_that_cannot_fit() -> None:
    with pytest.raises(WhetError, match="Row 1 has 11 tokens"):
        pack([3, 11], 10)
