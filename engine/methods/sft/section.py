"""Recipe section of supervised fine-tuning. Light: no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SFTSection(BaseModel):
    """Supervised fine-tuning: next-token loss on the tokens a model should learn to write."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["sft"] = "sft"
    supervise: Literal["responses", "all"] = Field(
        "responses",
        description="Loss on the assistant's tokens only (the chat template says which), or on all tokens.",
    )
    packing: bool = Field(
        False, description="Pack short rows together across optimizer steps; fewer, fuller steps."
    )
    neftune_alpha: float | None = Field(
        None, gt=0, description="Noise on the input embeddings (NEFTune, arXiv:2310.05914)."
    )
