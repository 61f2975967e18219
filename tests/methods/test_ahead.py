"""Fetching ahead changes neither the order of batches nor their number."""

from __future__ import annotations

from whet.engine.methods.sft.ahead import BatchesAhead


def test_same_batches_in_the_same_order() -> None:
    ahead, source = BatchesAhead(), iter(range(7))
    seen = []
    for asked in (2, 2, 2, 1):
        seen.append(ahead.take(source, asked))
        ahead.fetch()
        ahead.fetch()
    assert seen == [[0, 1], [2, 3], [4, 5], [6]]
    assert ahead.take(source, 2) == []


def test_another_epoch_starts_afresh() -> None:
    ahead, first, second = BatchesAhead(), iter("abcd"), iter("xyz")
    assert ahead.take(first, 2) == ["a", "b"]
    ahead.fetch()
    assert ahead.take(second, 2) == ["x", "y"]


def test_more_may_be_asked_than_was_fetched() -> None:
    ahead, source = BatchesAhead(), iter(range(5))
    assert ahead.take(source, 1) == [0]
    ahead.fetch()
    assert ahead.take(source, 3) == [1, 2, 3]


def test_fewer_may_be_asked_than_were_fetched() -> None:
    """The last step of an epoch whose sampler has more batches than it said."""
    ahead, source = BatchesAhead(), iter(range(7))
    assert ahead.take(source, 3) == [0, 1, 2]
    ahead.fetch()
    assert ahead.take(source, 1) == [3]
    ahead.fetch()
    assert ahead.take(source, 3) == [4, 5, 6]
