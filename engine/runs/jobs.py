"""Jobs: what is done with trained weights, as a run of its own that outlives whoever started it.

A job's directory is a run's with ``job.json`` beside the parent's recipe and plan; its worker does what that
says instead of training.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ..recipe import ExportSection

ID_END = r"-\d{8}-\d{6}-[0-9a-f]{4}$"
"""Time and tie-breaker of a run's id."""


class JobBase(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    parent: str | None = Field(description="The run whose weights these are; None for files of no run.")

    @property
    def subject(self) -> str:
        """What it works on, for its id."""
        return re.sub(ID_END, "", self.parent or "")


class ExportJob(JobBase):
    """Write and prove files in the parent's ``export/``."""

    action: Literal["export"] = "export"
    section: ExportSection | None = Field(description="None: what the parent's recipe asks for.")


class EvaluateJob(JobBase):
    """Held-out loss and answers of the base model beside the tuned one."""

    action: Literal["evaluate"] = "evaluate"
    data: str | None = Field(None, description="A source of rows; None: those the parent held out.")
    max_rows: int | None = Field(None, ge=1, description="Use only the first N rows.")
    prompts: list[str] = Field(default_factory=list, description="Empty: a few of the rows' own.")


class SmokeJob(JobBase):
    """Prove a GGUF (or merged weights) against the model (or adapter) it was made from."""

    action: Literal["smoke"] = "smoke"
    gguf: Path
    reference: Path

    @property
    def subject(self) -> str:
        return super().subject or self.gguf.stem


Job = Annotated[ExportJob | EvaluateJob | SmokeJob, Field(discriminator="action")]
JOB = TypeAdapter[Job](Job)
