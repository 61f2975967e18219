"""The reward of both sides: what the tokens are, which is nothing that random weights know."""

from __future__ import annotations

from typing import Any


def even(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The share of tokens with even numbers."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]
