"""Reward functions of a Python script, called where it runs."""

from __future__ import annotations

from typing import Any

import pytest

from whet.engine.errors import WhetError
from whet.engine.rewards.in_process import CallableRewards


def correct(prompts: list[str], completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    return [float(one == right) for one, right in zip(completions, answer, strict=True)]


def steps(completions: list[str], trainer_state: Any) -> list[float]:
    return [trainer_state["step"]] * len(completions)


async def half(completions: list[str], **kwargs: Any) -> list[float | None]:
    return [None, 0.5]


class Judge:
    def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
        return [1.0] * len(completions)


def test_callables_are_called_as_trl_does() -> None:
    rewards = CallableRewards([correct, steps, half, Judge()], [1, 0.1, 2, 1])
    scores = rewards.score(["p", "p"], ["a", "b"], {"answer": ["a", "c"]}, trainer_state={"step": 3})
    assert rewards.names == ["correct", "steps", "half", "Judge"]
    assert scores.values == {"correct": [1, 0], "steps": [3, 3], "half": [None, 0.5], "Judge": [1, 1]}
    assert scores.total == pytest.approx([2.3, 2.3])


def test_two_of_one_name_are_two_metrics() -> None:
    assert CallableRewards([Judge(), half, Judge()]).names == ["Judge_1", "half", "Judge_2"]


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(WhetError, match="2 reward weights for 1 reward functions"):
        CallableRewards([correct], [1, 1])
    with pytest.raises(WhetError, match="is a str, not a function"):
        CallableRewards(["correct"])  # type: ignore[list-item]
    with pytest.raises(WhetError, match="correct needs the column answer"):
        CallableRewards([correct]).score(["p"], ["a"], {})
    with pytest.raises(WhetError, match="half returned 2 values for 1 completions"):
        CallableRewards([half]).score(["p"], ["a"], {})
    with pytest.raises(ValueError, match="zip"):
        CallableRewards([correct]).score(["p"], ["a"], {"answer": []})
