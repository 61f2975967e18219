"""Recipe section of reward models. Light: no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..section import RowMethod

if TYPE_CHECKING:
    from ..stored_rows import StoredRows


class RewardSection(RowMethod):
    """A conversation becomes one score; of two answers the better one scores higher (Bradley and Terry)."""

    kind: Literal["reward"] = "reward"
    center: float | None = Field(
        None, gt=0, description="Weight of a penalty on scores far from zero, e.g. 0.01 (arXiv:2312.09244)."
    )

    def refuse_rows(self, rows: StoredRows) -> None:
        """Raises WhetError ``classification.precision`` for FP8."""
        from ..classification.suiting import refuse_fp8

        refuse_fp8(self.kind, rows.base_precision)
