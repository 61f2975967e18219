"""Rows of reinforcement learning: a prompt, and whatever else its rewards read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .formats import renamed
from .messages import Message
from .pairs import SHARE
from .rows import RawRow, RowError
from .tables import Column, Layout, turns_of

PROMPT = "prompt"


def prompt_layout(rows: Sequence[RawRow], columns: Mapping[str, str]) -> Layout | None:
    """A prompt and the other columns of the first rows; None where nearly all have no prompt."""
    values = [renamed(row.value, columns) for row in rows]
    if sum(PROMPT in value for value in values) < SHARE * len(values):
        return None
    names = dict.fromkeys(name for value in values for name in value if name != PROMPT)
    others = {name: Column("free", name) for name in names}
    return Layout("prompts", {PROMPT: Column("turns", PROMPT), **others})


def prompt_of(value: Mapping[str, Any], system: str | None) -> str | list[Message]:
    """A row's prompt: text, or messages that end with somebody whom the model answers.

    Args:
        value: the row, its columns renamed.
        system: message put before conversations that begin with none; makes messages of a text.

    Raises:
        RowError: it is missing, empty or of a wrong type, or ends with the assistant's own turn.
    """
    prompt = turns_of(value, PROMPT)
    if isinstance(prompt, str):
        if not system:
            return prompt
        prompt = [{"role": "user", "content": prompt}]
    if prompt[-1]["role"] in ("assistant", "system"):
        raise RowError(f"field {PROMPT!r} ends with a message of the {prompt[-1]['role']}: nothing to answer")
    if system and prompt[0]["role"] != "system":
        return [{"role": "system", "content": system}, *prompt]
    return prompt
