"""How a row is laid out, and the one shape all layouts become."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from ..errors import WhetError
from ..recipe import DataSection
from .chat_templates.thinking import FIELDS as THINKING
from .chat_templates.thinking import without_thinking
from .messages import Message, canonical_messages, content_text, looks_like_sharegpt, looks_like_turns
from .rows import RawRow, RowError
from .tool_calls import canonical_tools

FormatName = Literal["text", "alpaca", "sharegpt", "messages", "prompt_completion"]
OtherName = Literal[
    "preference",
    "ratings",
    "pairs",
    "triplets",
    "scored",
    "labelled",
    "multi_labelled",
    "tagged",
    "speech",
    "codes",
    "prompts",
]
"""Layouts of other methods: recognised, named, and not read for supervised fine-tuning."""

# A row's fields decide its layout; the first layout whose required fields are all there wins.
TURN_FIELDS = ("messages", "conversations", "conversation")
FIELDS: dict[FormatName, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
OTHER_FIELDS: dict[OtherName, tuple[tuple[str, ...], ...]] = {
    "preference": (("chosen", "rejected"),),
    "triplets": (("anchor", "positive", "negative"), ("query", "positive", "negative")),
    "pairs": (("anchor", "positive"), ("query", "positive"), ("sentence1", "sentence2")),
}
OTHER_METHODS: dict[OtherName, str] = {
    "preference": "preference data (chosen and rejected answers)",
    "ratings": "answers that a label calls good or bad",
    "triplets": "triplets for embeddings (anchor, positive, negative)",
    "pairs": "pairs for embeddings",
    "scored": "pairs with a score for embeddings",
    "labelled": "texts with a label",
    "multi_labelled": "texts with any number of labels",
    "tagged": "words with a tag each",
    "prompts": "prompts whose answers are scored",
    "speech": "recordings with what is said in them",
    "codes": "texts with the codes of their sound",
}


class FormatGuess(BaseModel):
    """What the rows look like. ``format`` is None when nothing fits that supervised fine-tuning can read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: FormatName | None
    other: OtherName | None = Field(None, description="The layout of another method that most rows have.")
    confidence: float = Field(ge=0, le=1, description="Share of the rows seen that fit.")
    reason: str

    @property
    def name(self) -> str:
        """Of the layout, whichever method reads it."""
        return self.format or self.other or "unknown"


@dataclass(slots=True)
class Example:
    """One training example: a conversation, a text, or a prompt with its completion."""

    messages: list[Message] | None = None
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    tools: list[Any] | None = None
    only_last: bool = False
    """Only the last turn is learnt, all before it is context."""

    def content(self) -> str:
        """All of its content as one string: what makes two examples the same."""
        if self.messages is None:
            return "\x1f".join((self.text or "", self.prompt or "", self.completion or ""))
        return "\x1e".join(f"{one['role']}\x1f{one['content']}{_beside(one)}" for one in self.messages)


def _beside(message: Message) -> str:
    """Calls and thinking, which may be all that two messages differ in."""
    said = {name: message[name] for name in ("tool_calls", *THINKING) if name in message}
    return f"\x1f{json.dumps(said, sort_keys=True, default=str)}" if said else ""


def sniff(rows: Iterable[RawRow], columns: Mapping[str, str] | None = None) -> FormatGuess:
    """Guess the layout from some rows, normally the first few hundred.

    Args:
        rows: rows of one source.
        columns: the recipe's renaming, a format's field name to this data's column.
    """
    votes: Counter[FormatName | OtherName | None] = Counter()
    fields: Counter[str] = Counter()
    for row in rows:
        value = renamed(row.value, columns or {})
        votes[layout_of(value) or _other_layout(value)] += 1
        fields.update(value.keys())
    total = votes.total()
    if not total:
        return FormatGuess(format=None, confidence=0, reason="there are no readable rows")
    best, count = votes.most_common(1)[0]
    if best is None:
        names = ", ".join(name for name, _ in fields.most_common(8)) or "none"
        return FormatGuess(format=None, confidence=0, reason=f"fields are: {names}")
    if best not in FIELDS:
        other = cast(OtherName, best)
        reason = (
            f"{count} of {total} rows are {OTHER_METHODS[other]}, which supervised fine-tuning cannot use"
        )
        return FormatGuess(format=None, other=other, confidence=count / total, reason=reason)
    reason = f"{count} of {total} rows have {' and '.join(FIELDS[best])}"
    if count < total:
        rest = ", ".join(f"{name or 'unknown'} {n}" for name, n in votes.most_common()[1:])
        reason += f"; others look like: {rest}"
    return FormatGuess(format=best, confidence=count / total, reason=reason)


def layout_of(value: Mapping[str, Any]) -> FormatName | None:
    """The layout that one row's fields fit, or None."""
    for name in TURN_FIELDS:
        turns = value.get(name)
        if looks_like_turns(turns):
            return "sharegpt" if looks_like_sharegpt(turns) else "messages"
    if _is_rated(value):
        return None
    for format, needed in FIELDS.items():
        if all(name in value for name in needed):
            return format
    return None


def _is_rated(value: Mapping[str, Any]) -> bool:
    """A completion beside a verdict on it (as KTO wants them): half of them are not to be learnt."""
    return "completion" in value and isinstance(value.get("label"), bool)


def to_example(row: RawRow, format: FormatName, section: DataSection) -> Example:
    """The row as an :class:`Example`.

    Raises:
        RowError: the row has not this layout, or a field is missing, null or of a wrong type.
    """
    value = renamed(row.value, section.columns)
    if format in ("messages", "sharegpt"):
        example = Example(messages=_turns(value), tools=canonical_tools(value.get("tools")))
    elif format == "alpaca":
        example = _alpaca(value)
    elif format == "prompt_completion":
        example = _prompt_completion(value)
    else:
        example = Example(text=_text_field(value, "text"))
    if example.messages is not None and section.system and example.messages[0]["role"] != "system":
        example.messages.insert(0, {"role": "system", "content": section.system})
    if example.messages is not None and section.reasoning == "drop":
        example.messages = [
            without_thinking(message) if message["role"] == "assistant" else message
            for message in example.messages
        ]
    return example


def learnt_parts(example: Example, section: DataSection) -> list[Example]:
    """The example as rows to train on: with ``data.reasoning: each`` one for each of its answers."""
    messages = example.messages
    if section.reasoning != "each" or messages is None:
        return [example]
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    if len(turns) < 2:
        return [example]
    return [Example(messages=messages[: at + 1], tools=example.tools, only_last=True) for at in turns]


def renamed(value: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with the recipe's columns under the format's field names."""
    if not columns:
        return value
    return {**value, **{field: value[column] for field, column in columns.items() if column in value}}


def _turns(value: Mapping[str, Any]) -> list[Message]:
    for name in TURN_FIELDS:
        if name in value:
            return canonical_messages(value[name], name)
    raise RowError(_missing(value, "messages"))


def _alpaca(value: Mapping[str, Any]) -> Example:
    question = _text_field(value, "instruction")
    extra = value.get("input")
    if extra is not None and not isinstance(extra, str):
        raise RowError(f"field 'input' is {_kind(extra)}, expected text")
    if extra and extra.strip():
        question = f"{question}\n\n{extra}"
    messages: list[Message] = []
    if isinstance(value.get("system"), str) and value["system"].strip():
        messages.append({"role": "system", "content": value["system"]})
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": _text_field(value, "output", empty=True)})
    return Example(messages=messages)


def _prompt_completion(value: Mapping[str, Any]) -> Example:
    if isinstance(value.get("prompt"), list) or isinstance(value.get("completion"), list):
        before = _as_messages(value.get("prompt"), "prompt", "user")
        after = _as_messages(value.get("completion"), "completion", "assistant")
        return Example(messages=before + after, tools=canonical_tools(value.get("tools")))
    completion = _text_field(value, "completion", empty=True)
    return Example(prompt=_text_field(value, "prompt"), completion=completion)


def _as_messages(value: Any, field: str, role: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return canonical_messages(value, field)


def _text_field(value: Mapping[str, Any], name: str, empty: bool = False) -> str:
    if name not in value:
        raise RowError(_missing(value, name))
    if value[name] is None:
        raise RowError(f"field {name!r} is null")
    text = content_text(value[name], f"field {name!r}")
    if not empty and not text.strip():
        raise RowError(f"field {name!r} is empty")
    return text


def _missing(value: Mapping[str, Any], name: str) -> str:
    seen = ", ".join(repr(field) for field in list(value)[:8]) or "none"
    return f"field {name!r} is missing (fields: {seen})"


def _other_layout(value: Mapping[str, Any]) -> OtherName | None:
    if _is_rated(value):
        return "ratings"
    for kind, choices in OTHER_FIELDS.items():
        if any(all(name in value for name in needed) for needed in choices):
            return kind
    return None


def _kind(value: object) -> str:
    return type(value).__name__


def standardize_sharegpt(dataset: Any) -> Any:
    """Conversations of ``{"from", "value"}`` turns (or any usual spelling) as ``{"role", "content"}``.

    Args:
        dataset: a ``datasets.Dataset`` (or ``IterableDataset``), or a list of rows. A column `messages`,
            `conversations` or `conversation` holds the turns and keeps its name.

    Returns:
        The same kind of object, with canonical roles; the input is not changed.

    Raises:
        WhetError: ``data.sharegpt`` naming the row when a row has no such column or an unusable turn.
    """
    if isinstance(dataset, list):
        return [_standard_row(row, number) for number, row in enumerate(dataset)]
    return cast(Any, dataset).map(_standard_row, with_indices=True)


def _standard_row(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    name = next((field for field in TURN_FIELDS if field in row), None)
    try:
        if name is None:
            raise RowError(_missing(row, "conversations"))
        return {**row, name: canonical_messages(row[name], name)}
    except RowError as error:
        raise WhetError(
            "data.sharegpt",
            f"Row {number} cannot be standardised: {error.reason}.",
            "Each row needs a list of turns like {'from': 'human', 'value': '...'}.",
        ) from error
