"""Columns of unknown names are mapped where it is plain what they hold."""

from __future__ import annotations

from typing import Any

import pytest

from whet.engine.data.formats import layout_of, renamed, sniff, to_example
from whet.engine.data.mapping import find_mapping
from whet.engine.data.rows import RawRow
from whet.engine.recipe import DataSection

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def rows(*values: dict[str, Any]) -> list[RawRow]:
    return [RawRow("a.jsonl", at, value) for at, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("value", "format", "columns"),
    [
        (
            {"question": "a", "answer": "b"},
            "prompt_completion",
            {"prompt": "question", "completion": "answer"},
        ),
        ({"input": "a", "target": "b"}, "prompt_completion", {"prompt": "input", "completion": "target"}),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "prompt_completion",
            {"prompt": "prompt", "completion": "chosen"},
        ),
        ({"prompt": "a", "chosen": TURNS, "rejected": TURNS}, "messages", {"messages": "chosen"}),
        ({"dialogue": TURNS, "id": 7}, "messages", {"messages": "dialogue"}),
        ({"title": "t", "content": "a long story"}, "text", {"text": "content"}),
    ],
)
def test_found(value: dict[str, Any], format: str, columns: dict[str, str]) -> None:
    """And the rows can then be read by it."""
    mapping = find_mapping(rows(value, value))
    assert mapping is not None and (mapping.format, mapping.columns) == (format, columns)
    section = DataSection(train="a.jsonl", format=mapping.format, columns=mapping.columns)
    assert layout_of(renamed(value, columns)) == format
    assert to_example(rows(value)[0], mapping.format, section).content()


@pytest.mark.parametrize(
    "values",
    [
        [],
        [{"a": "1", "b": "2"}],
        [{"question": 7, "answer": "b"}],
        [{"question": "a", "answer": "b"}] * 8 + [{"question": "a"}] * 2,
        [{"anchor": "a", "positive": "b", "negative": "c"}],
        [{"prompt": "a", "completion": "b", "label": False}],
    ],
)
def test_nothing_is_guessed(values: list[dict[str, Any]]) -> None:
    assert find_mapping(rows(*values)) is None


@pytest.mark.parametrize(
    ("value", "other"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ({"anchor": "a", "positive": "b"}, "pairs"),
        ({"sentence1": "a", "sentence2": "b", "label": 1}, "pairs"),
        ({"query": "a", "positive": "b", "negative": "c"}, "triplets"),
        ({"prompt": "a", "completion": "b", "label": False}, "ratings"),
    ],
)
def test_layouts_of_other_methods_are_named(value: dict[str, Any], other: str) -> None:
    guess = sniff(rows(value, value, value, {"x": 1}))
    assert (guess.format, guess.other, guess.confidence) == (None, other, 0.75)
    assert "3 of 4 rows" in guess.reason
