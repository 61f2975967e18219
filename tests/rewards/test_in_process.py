"""Reward functions of a Python script, called where it runs."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

from whet.engine.errors import WhetError
from whet.engine.rewards.in_process import checked_functions


def correct(prompts: list[str], completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    return [float(one == right) for one, right in zip(completions, answer, strict=True)]


async def half(completions: list[str], **kwargs: Any) -> list[float | None]:
    return [None, 0.5]


def nan(completions: list[str], **kwargs: Any) -> list[float]:
    return [float("nan")]


def test_functions_answer_as_before_under_their_names() -> None:
    now, later = checked_functions([correct, half])
    assert (now.__name__, later.__name__) == ("correct", "half")
    assert now(prompts=["p"] * 2, completions=["a", "b"], answer=["a", "c"], trainer_state=None) == [1, 0]
    assert asyncio.run(later(completions=["a", "b"])) == [None, 0.5]
    assert checked_functions(correct).__name__ == "correct"


def test_what_is_no_function_passes_as_it_is() -> None:
    partial = functools.partial(correct, answer=["a"])
    assert checked_functions(["a/reward-model", partial]) == ["a/reward-model", partial]


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(WhetError, match="nan returned nan for completion 0"):
        checked_functions(nan)(completions=["a"])
    with pytest.raises(WhetError, match="half returned 2 values for 1 completions"):
        asyncio.run(checked_functions(half)(completions=["a"]))
    with pytest.raises(WhetError, match="takes no argument `completions`"):
        checked_functions([lambda prompts: [0.0]])
    with pytest.raises(ValueError, match="zip"):
        checked_functions(correct)(prompts=["p"], completions=["a"], answer=[])
