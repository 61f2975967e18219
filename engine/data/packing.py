"""Which rows share a packed sequence: best-fit decreasing, deterministic."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from ..errors import WhetError


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put rows into bins of at most ``capacity`` tokens.

    Best-fit decreasing (Johnson 1974): longest row first, each into the fullest bin that still takes it; at
    most 11/9 of the optimal number of bins plus one. Equal lengths keep their order, bins come in the order
    of their first row, rows within a bin in data order, so the same lengths always give the same bins.

    Args:
        lengths: tokens of each row.
        capacity: tokens a bin holds.

    Returns:
        Row indices of each bin; every row appears exactly once.

    Raises:
        WhetError: ``data.pack`` when a row is longer than the capacity.
    """
    bins: list[list[int]] = []
    # Open bins as (space left, bin number), sorted: the first with enough space is the best fit.
    open_bins: list[tuple[int, int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        length = lengths[row]
        if length > capacity:
            raise WhetError(
                "data.pack",
                f"Row {row} has {length} tokens, a packed sequence holds {capacity}.",
                "Truncate rows to model.max_length first, or raise it.",
            )
        at = bisect_left(open_bins, (length, -1))
        if at == len(open_bins):
            space, number = capacity, len(bins)
            bins.append([])
        else:
            space, number = open_bins.pop(at)
        bins[number].append(row)
        left = (space - length, number)
        open_bins.insert(bisect_left(open_bins, left), left)
    packed = [sorted(rows) for rows in bins]
    return sorted(packed)
