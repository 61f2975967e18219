"""Labels from character spans and from markers."""

from __future__ import annotations

from whet.engine.data.masking import IGNORE, labels_of, token_spans

OFFSETS = [(0, 3), (3, 4), (4, 9), (9, 10), (10, 14)]


def test_tokens_inside_a_span() -> None:
    assert token_spans(OFFSETS, [(3, 10)]) == [(1, 4)]
    assert token_spans(OFFSETS, [(0, 14)]) == [(0, 5)]
    assert token_spans(OFFSETS, [(0, 3), (10, 14)]) == [(0, 1), (4, 5)]


def test_a_token_across_an_edge_belongs_to_the_span() -> None:
    assert token_spans(OFFSETS, [(2, 5)]) == [(0, 3)]


def test_nothing_overlaps() -> None:
    assert token_spans(OFFSETS, [(14, 20)]) == []
    assert token_spans([], [(0, 4)]) == []


def test_all_tokens_of_one_character() -> None:
    # Byte-level tokenizers spell a rare character in several tokens with one range.
    assert token_spans([(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)], [(1, 2)]) == [(1, 4)]


def test_labels_are_ids_inside_only() -> None:
    assert labels_of([5, 6, 7, 8], [(1, 2), (3, 4)]) == [IGNORE, 6, IGNORE, 8]
