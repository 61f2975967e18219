"""Which tokens carry a label: from character spans, or from explicit markers in the ids."""

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


def find_marker_spans(
    ids: Sequence[int], instruction_ids: Sequence[int], response_ids: Sequence[int]
) -> list[Span]:
    """Token ranges between a response marker and the next instruction marker (or the end).

    The marker itself is not in the range. An empty list means that the response marker is not in the row.
    """
    spans: list[Span] = []
    at = _find(ids, response_ids, 0)
    while at is not None:
        first = at + len(response_ids)
        stop = _find(ids, instruction_ids, first)
        last = len(ids) if stop is None else stop
        spans.append((first, last))
        at = _find(ids, response_ids, last)
    return spans


def _find(ids: Sequence[int], marker: Sequence[int], start: int) -> int | None:
    if not marker:
        return None
    wanted = list(marker)
    for at in range(start, len(ids) - len(wanted) + 1):
        if ids[at] == wanted[0] and list(ids[at : at + len(wanted)]) == wanted:
            return at
    return None
