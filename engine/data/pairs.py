"""Rows that embedding models learn from: pairs, triplets, scored pairs, labelled texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .formats import renamed
from .rows import RawRow
from .tables import Column, Layout

ANCHORS = ("anchor", "query", "question", "sentence1", "sentence_A", "text1", "premise", "title")
POSITIVES = (
    "positive", "answer", "document", "passage", "sentence2", "sentence_B", "text2", "hypothesis", "body",
)  # fmt: skip
NEGATIVE = "negative"
SCORES = ("score", "similarity", "similarity_score")
TEXTS = ("text", "sentence")
LABELS = ("label", "label_text", "class")
SHARE = 0.9
"""Of the rows looked at must have a layout's columns."""


def embedding_layout(rows: Sequence[RawRow], columns: Mapping[str, str]) -> Layout | None:
    """The layout that nearly all rows have; None where they have no known one.

    Args:
        rows: of one source.
        columns: the recipe's renaming, a stored column's name to this data's.
    """
    return chosen(rows, columns, (_triplets, _scored, _pairs, _labelled))


def reranker_layout(rows: Sequence[RawRow], columns: Mapping[str, str]) -> Layout | None:
    """As :func:`embedding_layout`, of a query and documents that the model reads beside it."""
    found = chosen(rows, columns, (_triplets, _scored, _pairs))
    return None if found is None else replace(found, joint=True)


def chosen(
    rows: Sequence[RawRow],
    columns: Mapping[str, str],
    finders: Sequence[Callable[[Mapping[str, Any]], Layout | None]],
) -> Layout | None:
    """The first layout that nearly all rows have."""
    values = [renamed(row.value, columns) for row in rows]
    for find in finders:
        votes = [layout for layout in map(find, values) if layout is not None]
        if votes and len(votes) >= SHARE * len(values):
            return votes[0]
    return None


def first_text(value: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of these fields that holds text."""
    return next((name for name in names if isinstance(value.get(name), str)), None)


def _two(value: Mapping[str, Any]) -> tuple[str, str] | None:
    anchor, positive = first_text(value, ANCHORS), first_text(value, POSITIVES)
    return None if anchor is None or positive is None else (anchor, positive)


def _pairs(value: Mapping[str, Any]) -> Layout | None:
    two = _two(value)
    if two is None:
        return None
    return Layout("pairs", {"anchor": Column("text", two[0]), "positive": Column("text", two[1])})


def _triplets(value: Mapping[str, Any]) -> Layout | None:
    """Any number of negatives, as columns ``negative``, ``negative_1``, ... or one list ``negatives``."""
    two = _two(value)
    negatives = sorted(
        (name for name in value if name == NEGATIVE or name.startswith(f"{NEGATIVE}_")), key=_number
    )
    if two is None or not negatives:
        return None
    columns = {"anchor": Column("text", two[0]), "positive": Column("text", two[1])}
    return Layout("triplets", columns | {name: Column("text", name) for name in negatives})


def _number(name: str) -> int:
    tail = name.rpartition("_")[2]
    return int(tail) if tail.isdigit() else 0


def _scored(value: Mapping[str, Any]) -> Layout | None:
    two = _two(value)
    score = next((name for name in (*SCORES, "label") if _is_number(value.get(name))), None)
    if two is None or score is None:
        return None
    columns = {"anchor": Column("text", two[0]), "positive": Column("text", two[1])}
    return Layout("scored", columns | {"score": Column("number", score)})


def _labelled(value: Mapping[str, Any]) -> Layout | None:
    text, label = first_text(value, TEXTS), next((name for name in LABELS if name in value), None)
    if text is None or label is None:
        return None
    return Layout("labelled", {"text": Column("text", text), "label": Column("label", label)})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
