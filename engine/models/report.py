"""Everything known of one model before it is trained. Light: no weights are read."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..data.template_facts import TemplateFacts
from .facts import ModelFacts

Word = Literal["supported", "experimental", "unsupported"]


class CapabilityReport(BaseModel):
    """Whether something works with a model, and what there is to say about it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: Word
    note: str = Field("", description="The reason, or what is not proven.")


class ModelReport(BaseModel):
    """One model: facts, what it can do, what it needs on this machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    facts: ModelFacts
    family: str
    known_family: bool = Field(description="False: plain transformers, sizes from the weight files.")
    here: bool = Field(description="The weights lie on this machine.")
    safetensors: bool = Field(description="There are weights whet can read; others are refused.")
    licence: str | None = Field(description="Where whet knows the model; None: look at its page.")
    chat: bool
    capabilities: dict[str, CapabilityReport]
    fast_path: str | None = Field(description="Why it trains on plain transformers; None: on the fast path.")
    template: TemplateFacts | None = Field(description="Of the model's own chat template; None without one.")
    fitting_template: str | None = Field(description="For chat rows where the model has none.")
    gguf: str | None = Field(description="Why it has no GGUF export; None when it has.")
    memory_gib: dict[str, dict[int, float]] = Field(
        description="LoRA's need at least: how the base is held, then tokens of the longest row."
    )
    capacity_gib: float = Field(description="Of this machine's GPU, or its RAM.")
    longest: dict[str, int | None] = Field(
        description="Tokens of the longest row that fits, by how the base is held; None off the fast path."
    )


def inspect_model(name: str, revision: str | None = None) -> ModelReport:
    """Everything known of a model; small files are fetched from the hub where they are not here."""
    raise NotImplementedError(name)
