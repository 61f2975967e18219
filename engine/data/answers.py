"""Rows of preference training: a prompt with a better and a worse answer, or with an answer and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .formats import Example
from .messages import Message
from .pairs import chosen
from .rows import RawRow, RowError
from .tables import Column, Layout, turns_of

PROMPT = "prompt"
Turns = str | list[Message]


def answer_layout(rows: Sequence[RawRow], columns: Mapping[str, str]) -> Layout | None:
    """Compared or rated answers; see :func:`.pairs.embedding_layout`."""
    return chosen(rows, columns, (_compared, _rated))


def compared_layout(rows: Sequence[RawRow], columns: Mapping[str, str]) -> Layout | None:
    """Compared answers alone; see :func:`.pairs.embedding_layout`."""
    return chosen(rows, columns, (_compared,))


def _compared(value: Mapping[str, Any]) -> Layout | None:
    if not {"chosen", "rejected"} <= value.keys():
        return None
    columns = {"chosen": Column("turns", "chosen"), "rejected": Column("turns", "rejected")}
    return Layout("preference", columns)


def _rated(value: Mapping[str, Any]) -> Layout | None:
    if not {PROMPT, "completion", "label"} <= value.keys():
        return None
    columns = {"completion": Column("turns", "completion"), "label": Column("truth", "label")}
    return Layout("ratings", columns, classes="label")


def examples_of(value: Mapping[str, Any], layout: str, system: str | None) -> list[Example]:
    """One conversation, or one prompt with its completion, for each answer of a row.

    Args:
        value: the row, its columns renamed.
        layout: ``preference`` (chosen, then rejected) or ``ratings``.
        system: message put before conversations that begin with none.

    Raises:
        RowError: a field is missing, empty or of a wrong type; the answers are the same.
    """
    names = ("chosen", "rejected") if layout == "preference" else ("completion",)
    answers = [turns_of(value, name) for name in names]
    prompt, answers = _parted(value, answers, names)
    if len(answers) == 2 and _text(answers[0]) == _text(answers[1]):
        raise RowError("the chosen and the rejected answer are the same")
    tools = value.get("tools") or None
    if tools is not None and not isinstance(tools, list):
        raise RowError(f"field 'tools' is {type(tools).__name__}, expected a list")
    return [_example(prompt, answer, system, tools) for answer in answers]


def _parted(
    value: Mapping[str, Any], answers: list[Turns], names: Sequence[str]
) -> tuple[Turns, list[Turns]]:
    """Prompt and answers, where answers may be whole conversations that the prompt is the beginning of."""
    whole = [isinstance(answer, list) and answer[0]["role"] != "assistant" for answer in answers]
    if not any(whole):
        prompt = turns_of(value, PROMPT)
        return prompt, [_one(answer, name) for answer, name in zip(answers, names, strict=True)]
    if not all(whole):
        raise RowError("only one of 'chosen' and 'rejected' is a whole conversation")
    told: list[list[Message]] = [answer for answer in answers if isinstance(answer, list)]
    shared = [*told[0][:-1]]
    for other, name in zip(told, names, strict=True):
        if other[:-1] != shared:
            raise RowError("'chosen' and 'rejected' must be the same conversation up to its last message")
        _one(other[-1:], name)
    if not shared:
        raise RowError("there is no prompt before the answers")
    return shared, [other[-1:] for other in told]


def _one(answer: Turns, name: str) -> Turns:
    """An answer is one turn of the assistant."""
    if isinstance(answer, list):
        roles = [turn["role"] for turn in answer]
        if roles != ["assistant"]:
            raise RowError(
                f"field {name!r} must end in one message of the assistant, it is: {', '.join(roles)}"
            )
        if not answer[0]["content"].strip() and not answer[0].get("tool_calls"):
            raise RowError(f"field {name!r} is empty")
    return answer


def _text(answer: Turns) -> str:
    return answer if isinstance(answer, str) else repr(sorted(answer[0].items()))


def _example(prompt: Turns, answer: Turns, system: str | None, tools: list[Any] | None) -> Example:
    if isinstance(prompt, str) and isinstance(answer, str) and not system and tools is None:
        return Example(prompt=prompt, completion=answer)
    before: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
    after: list[Message] = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    if system and before[0]["role"] != "system":
        before.insert(0, {"role": "system", "content": system})
    return Example(messages=before + after, tools=tools)
