"""Which tokens carry a label, from spans of characters or tokens."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter

IGNORE = -100
"""Label of an unsupervised token, PyTorch's ``ignore_index``."""

Span = tuple[int, int]


def token_spans(offsets: Sequence[Span], spans: Sequence[Span]) -> list[Span]:
    """Token index ranges that overlap character spans.

    A token that straddles a span's edge belongs to it: its characters inside the span cannot be learnt
    otherwise.

    Args:
        offsets: character range of each token, non-decreasing.
        spans: half-open character ranges.
    """
    found = []
    for start, end in spans:
        first = bisect_right(offsets, start, key=itemgetter(1))
        last = bisect_left(offsets, end, lo=first, key=itemgetter(0))
        if last > first:
            found.append((first, last))
    return found


def labels_of(ids: Sequence[int], spans: Sequence[Span]) -> list[int]:
    """Copy ``ids`` inside the token spans, :data:`IGNORE` elsewhere."""
    labels = [IGNORE] * len(ids)
    for first, last in spans:
        labels[first:last] = ids[first:last]
    return labels
