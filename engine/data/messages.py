"""Turns of a conversation under any usual spelling, as ``{"role", "content"}`` with canonical roles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .chat_templates.thinking import FIELDS as THINKING
from .rows import RowError, repr_of
from .tool_calls import canonical_calls

Message = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "ipython": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
CALLS = ("function_call", "tool_call")
"""Roles of turns whose content is a call, as JSON."""
ROLE_FIELDS = ("role", "from")
CONTENT_FIELDS = ("content", "value", "text")
KEPT_FIELDS = ("name", "tool_calls", "tool_call_id", *THINKING)


def looks_like_turns(value: object) -> bool:
    """A list whose first element has a role under some spelling."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], Mapping)
        and any(field in value[0] for field in ROLE_FIELDS)
    )


def looks_like_sharegpt(turns: Any) -> bool:
    """Turns are ``{"from", "value"}``."""
    return "from" in turns[0] and "role" not in turns[0]


def canonical_messages(turns: object, field: str) -> list[Message]:
    """The turns with canonical roles and text contents.

    Raises:
        RowError: naming the turn (counted from 1) and what is wrong with it.
    """
    if turns is None:
        raise RowError(f"field {field!r} is null")
    if not isinstance(turns, list):
        raise RowError(f"field {field!r} is {type(turns).__name__}, expected a list of messages")
    if not turns:
        raise RowError(f"field {field!r} is an empty list")
    return [_canonical(turn, f"message {number}") for number, turn in enumerate(turns, 1)]


def alternates(messages: list[Message]) -> bool:
    """After an optional system message: user, assistant, user, ... ending with the assistant."""
    roles = [message["role"] for message in messages]
    if roles[0] == "system":
        del roles[0]
    if "tool" in roles:
        return True  # tool turns have an order of their own
    wanted = ("user", "assistant")
    return bool(roles) and roles[-1] == "assistant" and all(r == wanted[i % 2] for i, r in enumerate(roles))


def _canonical(turn: object, place: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"{place} is {type(turn).__name__}, expected an object with role and content")
    role_field = next((field for field in ROLE_FIELDS if field in turn), None)
    if role_field is None:
        raise RowError(f"{place} has no role")
    spelled = turn[role_field]
    role = ROLES.get(spelled.strip().lower()) if isinstance(spelled, str) else None
    if role is None:
        raise RowError(f"{place} has the unknown role {repr_of(spelled)} (known: {', '.join(ROLES)})")
    kept = {field: turn[field] for field in KEPT_FIELDS if turn.get(field) is not None}
    content_field = next((field for field in CONTENT_FIELDS if field in turn), None)
    content = turn[content_field] if content_field else None
    named = spelled.strip().lower() in CALLS
    calls = content if named else turn.get("tool_calls") or turn.get("function_call")
    if calls:
        content = None if calls is content else content
        kept["tool_calls"] = canonical_calls(calls, place)
        _check_texts(kept["tool_calls"], f"{place} tool call")
    else:
        kept.pop("tool_calls", None)
    if content is None:
        if not kept.get("tool_calls"):
            raise RowError(f"{place} ({role}) has {'null' if content_field else 'no'} content")
        content = ""
    for field in THINKING:
        if field in kept:
            kept[field] = content_text(kept[field], f"{place} {field}")
    if role == "tool" and isinstance(content, Mapping):
        content = json.dumps(content, ensure_ascii=False)
    return {"role": role, "content": content_text(content, f"{place} ({role}) content"), **kept}


def _check_texts(value: object, place: str) -> None:
    """Every text in it, however deep, can be tokenised. Raises RowError."""
    if isinstance(value, str):
        content_text(value, place)
    elif isinstance(value, Mapping):
        _check_texts([*value, *value.values()], place)
    elif isinstance(value, list):
        for inner in value:
            _check_texts(inner, place)


def content_text(content: object, place: str) -> str:
    """Text, or the text parts of a multimodal content list joined.

    Raises:
        RowError: not text, or text that no tokenizer can take (NUL, halves of surrogate pairs).
    """
    if isinstance(content, list):
        content = "".join(_part(part, place) for part in content)
    if not isinstance(content, str):
        raise RowError(f"{place} is {type(content).__name__}, expected text")
    if "\0" in content:
        raise RowError(f"{place} contains a NUL character")
    if not content.isascii():
        _check_characters(content, place)
    return content


def _part(part: object, place: str) -> str:
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type", "object") if isinstance(part, Mapping) else type(part).__name__
    raise RowError(f"{place} has a part of kind {repr_of(kind)}; only text parts can be used")


def _check_characters(content: str, place: str) -> None:
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"{place} contains half of a surrogate pair at character {error.start + 1}") from error
    if any(mark in content for mark in "\ufdd0\ufdd1\ufdd2\ufdd3"):
        raise RowError(f"{place} contains noncharacters (U+FDD0 to U+FDD3)")
