"""What the recipe sections of all methods but supervised fine-tuning share. Light: no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from .kinds import LANGUAGE_MODELS

if TYPE_CHECKING:
    from .stored_rows import StoredRows

TEMPLATED = (*LANGUAGE_MODELS, "reward", "vision")
"""Methods whose rows the chat template writes."""


class RowMethod(BaseModel):
    """A method whose rows are no chat to be continued: they lie as columns, see :mod:`..data.tables`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    packing: ClassVar[bool] = False
    supervise: ClassVar[Literal["responses", "all"]] = "all"

    def more_inputs(self, layout: str) -> int:
        """What goes through the model for each row of a micro-batch beside the row's own texts."""
        return 0

    def refuse_rows(self, rows: StoredRows) -> None:
        """Raises WhetError where these rows, or this model, cannot be trained on by these settings: while the
        run is planned, not in its job."""
