"""A recipe's rewards on answers that are there already, before a GPU is taken. Light: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..data.rows import BadRow, RawRow
from ..data.sources import iter_rows
from ..errors import WhetError
from ..recipe import DataSection, Recipe
from .runner import Rewards
from .scores import Scores
from .verifiers.answers import text_of
from .verifiers.registry import check_rows

OURS = ("prompt", "completion")


class TriedReward(BaseModel):
    """One reward over all rows; ``mean`` and ``spread`` (standard deviation) of those it applies to."""

    model_config = ConfigDict(frozen=True)

    name: str
    weight: float
    applied: int
    mean: float | None
    spread: float | None
    lowest: float | None
    highest: float | None
    seconds: float


class TriedRow(BaseModel):
    """One row's scores."""

    model_config = ConfigDict(frozen=True)

    file: str
    line: int
    completion: str
    values: dict[str, float | None]
    total: float


class RewardTrial(BaseModel):
    """What rewards make of some rows."""

    model_config = ConfigDict(frozen=True)

    rewards: list[TriedReward]
    rows: list[TriedRow]
    warnings: list[str]


def try_rewards(recipe: Recipe, source: str, most: int = 64, base: Path | None = None) -> RewardTrial:
    """Score rows that hold a ``completion`` (a text or messages) and the columns that the rewards read.

    Args:
        recipe: of method.kind=grpo; its rewards are used, nothing else of it.
        source: a file, folder or hub id.
        most: rows to score; they are scored as one batch.
        base: where `file.py:function` begins; the current folder by default.

    Raises:
        WhetError: ``reward.no_rewards``, ``reward.no_completion``, ``reward.bad_row``, and what
            :class:`.runner.Rewards` raises.
    """
    if recipe.method.kind != "grpo":
        raise WhetError(
            "reward.no_rewards",
            f"method.kind={recipe.method.kind} has no rewards.",
            "Name a recipe of method.kind=grpo: `whet recipes` lists those to start from.",
        )
    specs = recipe.method.rewards
    rows = [_usable(row) for row in iter_rows(source, DataSection(train=source, max_rows=most))]
    if not rows:
        raise WhetError("reward.no_completion", f"{source} holds no rows.", "Name a file with a few.")
    names = dict.fromkeys(name for row in rows for name in row.value if name not in OURS)
    columns = {name: [row.value.get(name) for row in rows] for name in names}
    check_rows(specs, columns)
    with Rewards(specs, base or Path.cwd(), on_error=recipe.method.reward_errors) as rewards:
        scores = rewards.score(
            [row.value.get("prompt", "") for row in rows], [row.value["completion"] for row in rows], columns
        )
    return RewardTrial(rewards=_summary(scores), rows=_rows(rows, scores), warnings=scores.warnings)


def _usable(row: RawRow | BadRow) -> RawRow:
    if isinstance(row, BadRow):
        raise WhetError("reward.bad_row", f"{row.file}:{row.line}: {row.reason}.", "Correct the row.")
    completion: Any = row.value.get("completion")
    messages = isinstance(completion, list) and all(isinstance(one, dict) for one in completion)
    if not isinstance(completion, str) and not messages:
        raise WhetError(
            "reward.no_completion",
            f"{row.file}:{row.line} has no completion to score; its columns are {', '.join(row.value)}.",
            "Add a column `completion`: an answer, good or bad, as a text or as messages.",
        )
    return row


def _summary(scores: Scores) -> list[TriedReward]:
    return [
        _reward(name, weight, [value for value in scores.values[name] if value is not None], scores)
        for name, weight in zip(scores.names, scores.weights, strict=True)
    ]


def _reward(name: str, weight: float, values: Sequence[float], scores: Scores) -> TriedReward:
    return TriedReward(
        name=name,
        weight=weight,
        applied=len(values),
        mean=fmean(values) if values else None,
        spread=pstdev(values) if values else None,
        lowest=min(values, default=None),
        highest=max(values, default=None),
        seconds=scores.seconds[name],
    )


def _rows(rows: Sequence[RawRow], scores: Scores) -> list[TriedRow]:
    return [
        TriedRow(
            file=row.file,
            line=row.line,
            completion=text_of(row.value["completion"]),
            values={name: scores.values[name][number] for name in scores.names},
            total=scores.total[number],
        )
        for number, row in enumerate(rows)
    ]
