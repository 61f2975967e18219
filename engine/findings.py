"""A finding: what a check saw, the evidence, and a fix a program can apply; one object in all front ends."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Severity = Literal["error", "warning", "note"]
PAGE = "docs/troubleshooting.md"


class Fix(BaseModel):
    """A way out: a recipe patch (dotted key -> value), an exact command, or both."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str = Field(description="The fix in one imperative sentence.")
    patch: dict[str, Any] = Field(
        default_factory=dict, description="Recipe settings to change, dotted key to value."
    )
    command: str | None = Field(default=None, description="An exact shell command, where one helps.")


class Finding(BaseModel):
    """What one check saw. An ``error`` blocks the start unless the recipe's ``accept`` names its id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(description="Stable id, e.g. D01; see docs/troubleshooting.md.")
    severity: Severity
    title: str = Field(description="One sentence, the fact.")
    evidence: dict[str, Any] = Field(default_factory=dict, description="Numbers, rows, files.")
    fix: Fix | None = None
    link: str = Field(default="", description="Where the id is explained; `whet explain ID` prints the same.")

    @model_validator(mode="before")
    @classmethod
    def _with_link(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("link"):
            return {**values, "link": f"{PAGE}#{str(values.get('id', '')).lower()}"}
        return values
