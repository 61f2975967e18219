"""Rows that classifiers learn from: texts or pairs of texts with classes, words with a tag each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .pairs import LABELS, TEXTS, chosen, first_text
from .rows import RawRow
from .tables import Column, Layout

FIRST = (*TEXTS, "sentence1", "premise", "question1", "question")
SECOND = ("text_pair", "sentence2", "hypothesis", "question2")
MANY = "labels"
WORDS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "pos_tags", "chunk_tags", "labels")


def classification_layout(rows: Sequence[RawRow], columns: Mapping[str, str]) -> Layout | None:
    """A text, or two that are read together, with a class or a list of classes; see
    :func:`.pairs.embedding_layout`."""
    return chosen(rows, columns, (_multi_labelled, _labelled))


def token_layout(rows: Sequence[RawRow], columns: Mapping[str, str]) -> Layout | None:
    """Words and as many tags; see :func:`.pairs.embedding_layout`."""
    return chosen(rows, columns, (_tagged,))


def _texts(value: Mapping[str, Any]) -> dict[str, Column] | None:
    first, second = first_text(value, FIRST), first_text(value, SECOND)
    if first is None:
        return None
    texts = {"text": Column("text", first)}
    return texts if second is None else texts | {"text_pair": Column("text", second)}


def _labelled(value: Mapping[str, Any]) -> Layout | None:
    texts, label = _texts(value), next((name for name in LABELS if name in value), None)
    if texts is None or label is None:
        return None
    return Layout("labelled", texts | {"label": Column("label", label)}, joint=True, classes="label")


def _multi_labelled(value: Mapping[str, Any]) -> Layout | None:
    texts = _texts(value)
    if texts is None or not isinstance(value.get(MANY), list):
        return None
    columns = texts | {"labels": Column("labels", MANY)}
    return Layout("multi_labelled", columns, joint=True, classes="labels")


def _tagged(value: Mapping[str, Any]) -> Layout | None:
    words = next((name for name in WORDS if isinstance(value.get(name), list)), None)
    tags = next((name for name in TAGS if isinstance(value.get(name), list)), None)
    if words is None or tags is None:
        return None
    columns = {"words": Column("words", words), "tags": Column("labels", tags)}
    return Layout("tagged", columns, classes="tags", aligned=("words", "tags"))
