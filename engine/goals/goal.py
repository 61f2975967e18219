"""What a person wants, and what whet proposes for it: a recipe, its plan, and the reason of each choice."""

from __future__ import annotations

import re
import textwrap
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..data.uses import Use
from ..plan import Plan
from ..recipe import Recipe
from ..recipe_files import to_yaml

Priority = Literal["quality", "speed", "memory"]
Kind = Literal["better", "faster", "less memory", "trial"]

ASKED = "asked for"
"""The reason of what the goal itself says."""
MACHINE = "machine"
"""The key under which `reasons` speaks of the machine."""
COMMENT_WIDTH = 100


class Goal(BaseModel):
    """A wish that needs no knowledge of fine-tuning: data, perhaps a model, what matters, and limits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str | list[str] = Field(
        description="`demo`, a file (JSONL, JSON, CSV, Parquet, text), a folder, a hub id, or a list of them."
    )
    eval_data: str | None = Field(
        None, description="Held-out rows, same choices; by default some of `data` are held out."
    )
    model: str | None = Field(None, description="`demo`, a folder or a hub id; None: whet chooses one.")
    priority: Priority = Field(
        "quality",
        description="quality: the largest model that fits, rank 32. speed: a small one, rank 16. memory: a "
        "small one, base weights in 4 bits.",
    )
    max_minutes: float | None = Field(None, gt=0, description="Training time, export left out.")
    max_memory_gib: float | None = Field(
        None, gt=0, description="Most GPU memory (RAM where there is no GPU) that training may take."
    )
    method: str = Field(
        "auto", description="What the rows are trained for (method.kind); auto: what they look made for."
    )
    export: list[str] | None = Field(
        None,
        description="GGUF types; None: q4_k_m where the model can be exported, [] for none.",
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="Dotted recipe key to value; they win over every choice of whet's."
    )


class Option(BaseModel):
    """Another way to the same goal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    text: str = Field(description="What it changes, in a few words.")
    why: str = Field(description="Why one would take it.")
    patch: dict[str, Any] = Field(description="Dotted recipe key to value, on the proposed recipe.")
    minutes: float | None = Field(description="Predicted training time; None: unknown on this machine.")
    memory_gib: float = Field(description="Memory that must be free for training.")


class Proposal(BaseModel):
    """A recipe for a goal, planned on this machine. Nothing has been started or written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    goal: Goal
    recipe: Recipe
    plan: Plan = Field(description="Of the recipe, here; what cannot be mended stands in its findings.")
    reasons: dict[str, str] = Field(
        description="Recipe key (or `machine`) to the reason of its value, in a few words."
    )
    changed: list[str] = Field(description="What was mended in the data, or given up to meet a limit.")
    unmet: list[str] = Field(description="Wishes and limits that could not be met, or not be checked.")
    uses: list[Use] = Field(description="Methods that read these rows, the likeliest first.")
    passed_over: list[str] = Field(description="Models that were considered and not taken, and why.")
    alternatives: list[Option] = Field(description="Other settings with what they would cost.")

    @property
    def minutes(self) -> float | None:
        """Training time of the plan; None where nothing is known of this machine's speed."""
        return None if self.plan.seconds is None else round(self.plan.seconds / 60, 1)

    def to_yaml(self) -> str:
        """The recipe as YAML, each key under a comment with its reason."""
        lines, section = [], ""
        for line in to_yaml(self.recipe).splitlines():
            key = re.match(r"^(  )?([a-z_0-9]+):", line)
            if key and not key[1]:
                section = key[2]
            if key:
                name = f"{section}.{key[2]}" if key[1] else key[2]
                reason = self.reasons.get(name, "")
                lines += _comment("" if reason == ASKED else reason, key[1] or "")
            lines.append(line)
        said = [self.reasons[MACHINE]] if MACHINE in self.reasons else []
        head = [part for text in ("Proposed by whet.", *said, *self.unmet) for part in _comment(text, "")]
        return "\n".join([*head, *lines]) + "\n"


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, COMMENT_WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
