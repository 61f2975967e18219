"""Recipe section of reward models. Light: no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..section import RowMethod


class RewardSection(RowMethod):
    """A conversation becomes one score; of two answers the better one scores higher (Bradley and Terry)."""

    kind: Literal["reward"] = "reward"
    center: float | None = Field(
        None, gt=0, description="Weight of a penalty on scores far from zero, e.g. 0.01 (arXiv:2312.09244)."
    )
