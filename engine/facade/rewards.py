"""Rewards, tried before a run: nothing written, no GPU taken."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..rewards.trial import RewardTrial


def try_rewards(recipe: Recipe, source: str, rows: int = 64, folder: Path | None = None) -> RewardTrial:
    """Score rows that hold a ``completion`` with a recipe's rewards; functions are found from ``folder`` on.

    Raises WhetError ``reward.*`` and ``data.*``.
    """
    from ..rewards.trial import try_rewards

    return try_rewards(recipe, source, rows, folder)
