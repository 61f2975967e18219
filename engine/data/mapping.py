"""Column names that nobody agreed on: which of them hold the question and which the answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

from .formats import FormatName, layout_of, renamed
from .messages import looks_like_turns
from .rows import RawRow

SHARE = 0.9
"""Of the rows looked at must fit."""

QUESTIONS = ("question", "query", "prompt", "instruction", "input", "problem", "request", "human", "user")
ANSWERS = ("answer", "response", "output", "completion", "chosen", "solution", "reply", "target", "assistant")
TEXTS = ("content", "document", "body", "story", "article", "passage", "code")
TURNS = ("chosen", "dialogue", "dialog", "turns", "chat", "history")


class Mapping(BaseModel):
    """Settings under which rows can be read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: FormatName
    columns: dict[str, str]


def find_mapping(rows: Iterable[RawRow]) -> Mapping | None:
    """What columns of unknown name most probably are; None where nothing is plain.

    Turns come first, then a question with its answer, then a lone text. Chosen answers of preference data
    can be trained on.
    """
    values = [row.value for row in rows]
    if not values:
        return None
    candidates = [Mapping(format="messages", columns={"messages": name}) for name in TURNS]
    candidates += [
        Mapping(format="prompt_completion", columns={"prompt": question, "completion": answer})
        for answer in ANSWERS
        for question in QUESTIONS
    ]
    candidates += [Mapping(format="text", columns={"text": name}) for name in TEXTS]
    return next((mapping for mapping in candidates if _fits(mapping, values)), None)


def _fits(mapping: Mapping, values: list[dict[str, Any]]) -> bool:
    return sum(_reads(mapping, value) for value in values) >= SHARE * len(values)


def _reads(mapping: Mapping, value: dict[str, Any]) -> bool:
    held = [value.get(column) for column in mapping.columns.values()]
    if mapping.format == "messages":
        return looks_like_turns(held[0])
    texts = all(isinstance(text, str) and text.strip() for text in held)
    return texts and layout_of(renamed(value, mapping.columns)) == mapping.format
