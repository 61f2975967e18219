"""What a run's ``state.json`` says, and the word for how a run stands."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

StateStatus = Literal["queued", "waiting", "running", "stopped", "failed", "finished"]
Status = Literal["queued", "waiting", "running", "stopped", "failed", "finished", "interrupted", "unreadable"]
JOBS = ("export", "evaluate", "smoke")
"""What a run can do instead of training, see :mod:`.jobs`."""
ACTIVE: frozenset[str] = frozenset({"queued", "waiting", "running"})


class RunError(BaseModel):
    """Why a run failed: a WhetError's three parts."""

    code: str
    message: str
    hint: str = ""


class RunState(BaseModel):
    """``state.json``: the newest facts of a run, always whole. Times are seconds since the epoch."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    status: StateStatus = "queued"
    phase: str | None = None
    step: int = 0
    total_steps: int | None = None
    loss: float | None = Field(default=None, description="Last training loss, nats per supervised token.")
    eval_loss: float | None = Field(
        default=None, description="Last held-out loss, nats per supervised token."
    )
    attempt: int = Field(default=0, description="Workers started so far; 0 before the first.")
    pid: int | None = None
    model: str = ""
    method: str = Field(default="", description="sft; of a job its action: export, evaluate, smoke.")
    parent: str | None = Field(default=None, description="The run whose weights a job works on.")
    started_by: str = ""
    created: float = 0.0
    launched: float | None = Field(
        default=None, description="Start of the newest attempt; the waiting order."
    )
    updated: float = 0.0
    gpu: str | None = Field(default=None, description="GPU held by the newest attempt; of rank 0.")
    waiting_for: list[str] = Field(default_factory=list, description="GPUs of which any one is awaited.")
    behind: list[str] = Field(
        default_factory=list, description="Runs waited for: who holds those GPUs, then who is next before it."
    )
    error: RunError | None = None
    last_checkpoint: str | None = None
    best_checkpoint: str | None = None
    summary: dict[str, Any] = Field(default_factory=dict)

    @property
    def is_job(self) -> bool:
        """Whether it works on weights that a run trained, rather than train."""
        return self.method in JOBS


class RunSummary(BaseModel):
    """One line of ``whet runs``."""

    model_config = ConfigDict(frozen=True)

    id: str
    path: str
    status: Status
    state: RunState
