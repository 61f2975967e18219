"""Reward functions of a Python script, called where it runs: TRL's way, without guard or limit. Light."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import WhetError
from .functions import Function
from .scores import Completion, Scores, checked


class CallableRewards:
    """Scores with Python callables; same :meth:`score` as :class:`.runner.Rewards`.

    A function that raises does so through ``score``, as in TRL. Raises WhetError ``reward.weights`` when
    there are not as many weights as functions, and what :meth:`.functions.Function.of` raises.
    """

    def __init__(
        self, functions: Sequence[Callable[..., Any]], weights: Sequence[float] | None = None
    ) -> None:
        titles = _titles(functions)
        if weights is not None and len(weights) != len(functions):
            raise WhetError(
                "reward.weights",
                f"{len(weights)} reward weights for {len(functions)} reward functions ({', '.join(titles)}).",
                "Give one weight a function, or none.",
            )
        self.functions = [
            Function.of(title, function) for title, function in zip(titles, functions, strict=True)
        ]
        self.weights = [1.0] * len(titles) if weights is None else [float(weight) for weight in weights]

    @property
    def names(self) -> list[str]:
        """Titles of the rewards, in order: the functions' names, numbered where two are the same."""
        return [function.title for function in self.functions]

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        columns: Mapping[str, Sequence[Any]],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **extras: Any,
    ) -> Scores:
        """Values of one batch; ``extras`` are objects such as ``trainer_state``, passed as they are.

        Raises what a function raises, and the errors of :func:`.scores.checked`.
        """
        values, seconds = {}, {}
        for function in self.functions:
            started = time.perf_counter()
            function.check_columns([*columns, *extras])
            returned = function(prompts, completions, {**columns, **extras}, completion_ids)
            values[function.title] = checked(function.title, returned, len(completions))
            seconds[function.title] = time.perf_counter() - started
        return Scores.of(dict(zip(self.names, self.weights, strict=True)), values, seconds, [])


def _titles(functions: Sequence[Any]) -> list[str]:
    names = [getattr(function, "__name__", type(function).__name__) for function in functions]
    counts, seen = Counter(names), Counter[str]()
    titles = []
    for name in names:
        seen[name] += 1
        titles.append(name if counts[name] == 1 else f"{name}_{seen[name]}")
    return titles
