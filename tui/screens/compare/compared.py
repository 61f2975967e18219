"""One of the runs that are compared, and what is worked out about all of them. No terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from whet.engine import api

from ...run_state import RunProgress
from ..run.look import Look

LETTERS = "ABCDEF"
"""Names of the runs on the screen, in the order they were chosen."""
OF_NO_INTEREST = ("name",)
"""Recipe keys that always differ."""


@dataclass
class Compared:
    """A run by its letter."""

    letter: str
    run_id: str
    progress: RunProgress = field(default_factory=RunProgress)
    seen: Look | None = None
    settings: dict[str, Any] | None = None
    """What was used, by dotted key; None before it is read, empty for a run without a plan."""

    @property
    def offset(self) -> int:
        return 0 if self.seen is None else self.seen.offset

    def take(self, seen: Look) -> None:
        """Take the newest look."""
        self.seen = seen
        self.progress = seen.progress or self.progress
        self.progress.take(seen.events)


def settings_of(plan: api.Plan) -> dict[str, Any]:
    """The recipe's values by dotted key; where it left one open, what was decided."""
    flat = _flat(plan.recipe.model_dump(mode="json"))
    return flat | {key: getattr(plan.resolved, name) for name, key in api.RECIPE_KEYS.items()}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing(settings: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Keys whose values are not the same in all, each with its value in words; ``–`` where there is none."""
    keys = dict.fromkeys(key for one in settings for key in one if key not in OF_NO_INTEREST)
    rows = {key: [_word(one[key]) if key in one else "–" for one in settings] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Metric:
    """A figure by which runs are compared."""

    name: str
    of: Callable[[RunProgress], float | None]
    best: Callable[[Sequence[float]], float] | None
    """Which of the values is best: min or max; None where neither is."""


def _loss(progress: RunProgress) -> float | None:
    return progress.pace.loss if progress.last is not None else None


def _held_out(progress: RunProgress) -> float | None:
    return progress.best_eval.loss if progress.best_eval is not None else None


def _speed(progress: RunProgress) -> float | None:
    """Over all steps."""
    curves = progress.curves
    return curves.tokens[-1] / curves.seconds[-1] if len(curves) and curves.seconds[-1] else None


def _last(column: str) -> Callable[[RunProgress], float | None]:
    def last(progress: RunProgress) -> float | None:
        values = progress.curves.values(column)
        return values[-1] if values else None

    return last


METRICS = (
    Metric("steps", _last("step"), None),
    Metric("tokens", _last("tokens"), None),
    Metric("loss", _loss, min),
    Metric("held out", _held_out, min),
    Metric("tok/s", _speed, max),
    Metric("time", _last("seconds"), min),
    Metric("memory", lambda progress: float(progress.peak_memory) or None, min),
)


def best_of(metric: Metric, values: Sequence[float | None]) -> set[int]:
    """Places of the best value; none where it is no competition."""
    there = [value for value in values if value is not None and math.isfinite(value)]
    if metric.best is None or len(set(there)) < 2:
        return set()
    best = metric.best(there)
    return {place for place, value in enumerate(values) if value == best}


def winner(runs: Sequence[Compared]) -> Compared | None:
    """The run with the lowest held-out loss, where there are two to choose from."""
    held_out = [(one.progress.best_eval.loss, one) for one in runs if one.progress.best_eval is not None]
    if len({loss for loss, _ in held_out}) < 2:
        return None
    return min(held_out, key=lambda pair: pair[0])[1]
