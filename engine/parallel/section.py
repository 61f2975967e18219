"""Recipe section of the hardware a run takes. Light: no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

MOST = 100_000
"""GPUs or machines; beyond any cluster."""


class HardwareSection(BaseModel):
    """How many GPUs share the run; what each does follows from the plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpus: Annotated[int, Field(ge=1, le=MOST)] | Literal["auto"] = Field(
        "auto",
        description="GPUs that share each optimizer step, which stays the same step. auto takes one, or as "
        "many as are needed where the run does not fit one.",
    )
    machines: int = Field(
        1,
        ge=1,
        le=MOST,
        description="Machines like this one that share the run. On more than one, torchrun, srun or an "
        "operator starts a process for each GPU, and gpus counts those of all machines.",
    )
    deepspeed: str | None = Field(
        None, description="DeepSpeed's own configuration file (JSON); DeepSpeed then holds and reduces."
    )

    @field_validator("gpus", mode="before")
    @classmethod
    def _number_or_auto(cls, value: object) -> object:
        """One message instead of one for each form; YAML's `on` is no number."""
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if value != "auto" and not whole:
            raise ValueError("a whole number of GPUs from 1 on, or auto.")
        return value
