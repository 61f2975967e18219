"""The plan: what will happen, exactly, before anything happens. Light and fast, so it is made at every edit.

`make_plan` gathers facts (model, data, machine), resolves what the recipe left open, estimates memory and
time, and runs the checks. The same recipe on the same facts gives the same plan and the same id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from .data.inspection import DataReport
from .findings import Finding
from .models.facts import ModelFacts
from .models.memory import Memory
from .recipe import Recipe
from .resolve import RECIPE_KEYS, Resolved

__all__ = ["RECIPE_KEYS", "Alternative", "DataFacts", "Plan", "Resolved"]


class DataFacts(BaseModel):
    """The prepared data: where the tokens lie, the hashes that name them, what was seen in them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dir: Path
    digest: str
    template_digest: str | None
    train: Path
    eval: Path | None
    report: DataReport


class Alternative(BaseModel):
    """Another way to run the same recipe: a patch and what it would need."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    patch: dict[str, Any]
    memory: Memory


class Plan(BaseModel):
    """Everything about a run that is known before it starts. JSON-serialisable; a run starts from its id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(description="Hash of the recipe, the resolved values, the model and the data.")
    recipe: Recipe
    resolved: Resolved
    origins: dict[str, str] = Field(
        description="Recipe key to default, recipe, override, or `planner: reason`; see RECIPE_KEYS."
    )
    model: ModelFacts
    data: DataFacts
    memory: Memory
    tokens_per_epoch: int
    total_tokens: int
    seconds: float | None = Field(
        description="Training time at the measured rate; None before the first run."
    )
    disk_bytes: dict[str, int] = Field(description="What the run will write: checkpoints, export, temporary.")
    findings: list[Finding]
    alternatives: list[Alternative] = Field(
        default_factory=list, description="Ways out when it does not fit."
    )
    versions: dict[str, str]

    def blocked(self) -> list[Finding]:
        """Errors the recipe does not accept by id; a run with any of these must not start."""
        return [f for f in self.findings if f.severity == "error" and f.id not in self.recipe.accept]
