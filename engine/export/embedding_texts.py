"""The texts whose vectors are compared: short ones on nine topics, two as long as the model takes. Light."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("embedding_texts.json")
LONGEST = 640
"""Most tokens of a long text: beyond the windows of 128 and 512 that encoders in use have."""


@cache
def short_texts() -> tuple[str, ...]:
    """Sentences in groups that say nearly the same, so that each has a neighbour; a few single words."""
    groups: dict[str, list[str]] = json.loads(FILE.read_text(encoding="utf-8"))
    return tuple(text for group in groups.values() for text in group)


def long_texts() -> tuple[str, str]:
    """All short texts after one another, in both orders; they are cut to what the model takes."""
    texts = short_texts()
    return " ".join(texts), " ".join(reversed(texts))


def prompted(prompts: Mapping[str, str]) -> list[str]:
    """One text behind each of the model's own prompts."""
    return [prompt + text for prompt, text in zip(prompts.values(), short_texts(), strict=False)]
