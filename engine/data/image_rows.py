"""Conversations with images: the turns, their images in order, whatever way a row writes them.

An image stands in a turn's list of parts, or beside the turns in a column; there ``<image>`` in a text says
where, and without that the images come first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .formats import TURN_FIELDS
from .messages import CONTENT_FIELDS, Message, canonical_messages, content_text, looks_like_turns
from .rows import RowError

MARK = "<image>"
COLUMNS = ("images", "image")
QUESTIONS = ("prompt", "question", "instruction")
ANSWERS = ("completion", "answer", "output", "response")
IMAGE: dict[str, Any] = {"type": "image"}
KINDS = ("image", "image_url", "input_image")
VALUES = ("image", "path", "image_url", "url", "data", "bytes")


def reads(value: Mapping[str, Any]) -> bool:
    """Whether a row looks like a conversation, or like a question and its answer."""
    if any(looks_like_turns(value.get(field)) for field in TURN_FIELDS):
        return True
    return _first(value, QUESTIONS) is not None and _first(value, ANSWERS) is not None


def has_images(value: Mapping[str, Any]) -> bool:
    """Whether a row names an image anywhere."""
    if any(value.get(column) for column in COLUMNS):
        return True
    lists = (value.get(field) for field in TURN_FIELDS)
    turns: list[Any] = next((one for one in lists if isinstance(one, list)), [])
    return any(
        isinstance(part, Mapping) and part.get("type") in KINDS
        for turn in turns
        if isinstance(turn, Mapping)
        for content in (turn.get(field) for field in CONTENT_FIELDS)
        if isinstance(content, list)
        for part in content
    )


def conversation_of(value: Mapping[str, Any], system: str | None = None) -> tuple[list[Message], list[Any]]:
    """The turns of a row, and its images in the order in which the turns show them.

    A turn with images has a list of parts, ``{"type": "image"}`` and ``{"type": "text", "text": ...}``; all
    others have text.

    Args:
        value: the row, its columns renamed.
        system: message put before conversations that begin with none.

    Raises:
        RowError: what is missing or of a wrong kind, naming the turn; images elsewhere than in a user's turn;
            more or fewer images beside the turns than places for them.
    """
    beside = _beside(value)
    turns = _turns(value)
    found: list[Any] = []
    messages = [_message(turn, number, found) for number, turn in enumerate(turns, 1)]
    places = sum(image is None for image in found)
    if beside and not places:
        if found:
            raise RowError("there are images in the turns and others beside them: which come where?")
        messages, places = _placed(messages, len(beside))
        found = [None] * places
    if places != len(beside):
        raise RowError(f"the turns have places for {places} images, and beside them are {len(beside)}")
    rest = iter(beside)
    images = [next(rest) if image is None else image for image in found]
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages, images


def _beside(value: Mapping[str, Any]) -> list[Any]:
    held: Any = next((value[column] for column in COLUMNS if value.get(column) is not None), [])
    images = list(held) if isinstance(held, list | tuple) else [held]
    if any(image is None for image in images):
        raise RowError("one of the images beside the turns is null")
    return images


def _turns(value: Mapping[str, Any]) -> list[Any]:
    for field in TURN_FIELDS:
        if field in value:
            turns = value[field]
            if not isinstance(turns, list) or not turns:
                raise RowError(f"field {field!r} is {preview_kind(turns)}, expected a list of messages")
            return turns
    question, answer = _first(value, QUESTIONS), _first(value, ANSWERS)
    if question is None or answer is None:
        fields = ", ".join(map(repr, list(value)[:8])) or "none"
        raise RowError(f"there are neither messages nor a question with its answer (fields: {fields})")
    return [
        {"role": "user", "content": value[question]},
        {"role": "assistant", "content": value[answer]},
    ]


def preview_kind(value: object) -> str:
    """What a field holds instead of turns."""
    return "empty" if value == [] else type(value).__name__


def _message(turn: Any, number: int, found: list[Any]) -> Message:
    """One turn; its images are appended to ``found``, None for one that stands beside the turns."""
    place = f"message {number}"
    field = next((name for name in CONTENT_FIELDS if isinstance(turn, Mapping) and name in turn), None)
    content = turn[field] if field is not None else None
    parts: list[Any] = content if isinstance(content, list) else [content]
    images = [_image(part, place) for part in parts if _is_image(part)]
    texts = [part for part in parts if not _is_image(part)]
    if isinstance(content, str):
        images = [None] * content.count(MARK)
    if not images:
        return canonical_messages([turn], place)[0]
    message = canonical_messages([{**turn, field: "x"}], place)[0]
    if message["role"] != "user":
        raise RowError(f"{place} ({message['role']}) holds an image; only what a user says can")
    found += images
    if isinstance(content, str):
        return {**message, "content": _split(content_text(content, place))}
    for text in texts:
        content_text([text] if isinstance(text, Mapping) else text, place)
    said = [dict(IMAGE) if _is_image(part) else _text(part, place) for part in parts]
    return {**message, "content": said}


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in KINDS


def _image(part: Mapping[str, Any], place: str) -> Any:
    """Its value; None for a place that a column fills."""
    held = next((part[name] for name in VALUES if part.get(name) is not None), None)
    if held is None and any(name in part for name in VALUES):
        raise RowError(f"{place} has an image that is null")
    return held


def _text(part: Any, place: str) -> dict[str, Any]:
    return {"type": "text", "text": content_text([part] if isinstance(part, Mapping) else part, place)}


def _split(text: str) -> list[dict[str, Any]]:
    """A text with marks as parts."""
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(text.split(MARK)):
        if number:
            parts.append(dict(IMAGE))
        # The line break that separates a mark from its question is no part of the question.
        piece = piece.strip("\n")
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _placed(messages: list[Message], count: int) -> tuple[list[Message], int]:
    """All images before the first thing a user says."""
    first = next((at for at, one in enumerate(messages) if one["role"] == "user"), None)
    if first is None:
        raise RowError("there are images, and nothing that a user says")
    said = {"type": "text", "text": messages[first]["content"]}
    placed = {**messages[first], "content": [*(dict(IMAGE) for _ in range(count)), said]}
    return [*messages[:first], placed, *messages[first + 1 :]], count


def _first(value: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if isinstance(value.get(name), str)), None)
