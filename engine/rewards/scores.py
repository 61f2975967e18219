"""What scoring a batch gives: a value for each reward and completion, and their weighted sum. Light."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import WhetError

SHOWN = 200
"""Characters of a value that an error quotes."""


@dataclass(frozen=True)
class Scores:
    """One batch's rewards, in the order of the recipe.

    ``values[name][i]`` is None where reward ``name`` does not apply to completion ``i``; it then adds nothing
    to ``total[i]``.
    """

    names: list[str]
    weights: list[float]
    values: dict[str, list[float | None]]
    total: list[float]
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        weights: Mapping[str, float],
        values: dict[str, list[float | None]],
        seconds: dict[str, float],
        warnings: list[str],
    ) -> Scores:
        """Sum up; a completion to which no reward applies scores 0, with a warning."""
        rows = list(zip(*values.values(), strict=True))
        total = [
            sum(
                weight * value
                for weight, value in zip(weights.values(), row, strict=True)
                if value is not None
            )
            for row in rows
        ]
        idle = [number for number, row in enumerate(rows) if all(value is None for value in row)]
        if idle:
            warnings = [
                *warnings,
                f"no reward applied to {len(idle)} of {len(rows)} completions (first: number {idle[0]}); "
                "they count as 0",
            ]
        return cls(list(weights), list(weights.values()), values, total, seconds, warnings)


def checked(title: str, returned: Any, count: int) -> list[float | None]:
    """A function's answer as numbers: lists, tuples, arrays and tensors are taken, booleans are 0 and 1.

    Raises WhetError ``reward.not_a_list``, ``reward.wrong_length``, ``reward.not_numbers`` or
    ``reward.not_finite``, each with what was returned.
    """
    if isinstance(returned, str | bytes | Mapping) or not _iterable(returned):
        raise WhetError(
            "reward.not_a_list",
            f"Reward {title} returned {_quoted(returned)}, not a list of {count} numbers.",
            "Return one number a completion: [1.0, 0.0, ...], or None where the reward does not apply.",
        )
    values = list(returned)
    if len(values) != count:
        raise WhetError(
            "reward.wrong_length",
            f"Reward {title} returned {len(values)} values for {count} completions: {_quoted(values)}.",
            "Return exactly one number a completion, in their order.",
        )
    return [None if value is None else _number(title, row, value) for row, value in enumerate(values)]


def _iterable(value: Any) -> bool:
    try:
        iter(value)
    except TypeError:
        return False
    return True


def _number(title: str, row: int, value: Any) -> float:
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise WhetError(
            "reward.not_numbers",
            f"Reward {title} returned {_quoted(value)}, a {type(value).__name__}, for completion {row}.",
            "Return numbers, or None where the reward does not apply.",
        ) from None
    if not math.isfinite(number):
        raise WhetError(
            "reward.not_finite",
            f"Reward {title} returned {number} for completion {row}.",
            "Look for a division by zero; return None where the reward does not apply.",
        )
    return number


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


Messages = Sequence[Mapping[str, Any]]
Completion = str | Messages
"""A text, or the messages that a chat row was answered with, as TRL passes them."""
