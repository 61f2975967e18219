"""Reward functions of a Python script, called where it runs; what they return is looked at. Light."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from .functions import Function
from .scores import checked


def checked_functions(reward_funcs: Any) -> Any:
    """The same argument of a trainer, whose functions raise where their answer is unusable.

    TRL reads NaN as "does not apply" and takes text for numbers where it can. Models, their names and other
    callables pass as they are.

    Raises:
        WhetError: ``reward.signature`` for a function that does not take ``completions``; later, from the
            functions, those of :func:`.scores.checked`. Their own exceptions pass.
    """
    if isinstance(reward_funcs, list | tuple):
        return [checked_functions(one) for one in reward_funcs]
    if not inspect.isroutine(reward_funcs):
        return reward_funcs
    title = Function.of(reward_funcs.__name__, reward_funcs).title
    return (
        _later(title, reward_funcs)
        if inspect.iscoroutinefunction(reward_funcs)
        else _now(title, reward_funcs)
    )


def _now(title: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def answer(*, completions: Any, **given: Any) -> list[float | None]:
        return checked(title, function(completions=completions, **given), len(completions))

    return answer


def _later(title: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def answer(*, completions: Any, **given: Any) -> list[float | None]:
        return checked(title, await function(completions=completions, **given), len(completions))

    return answer
