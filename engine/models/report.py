"""Everything known of one model before it is trained. Light: no weights are read."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..data.template_facts import TemplateFacts, template_facts
from ..data.tokenization import RowTokenizer, TokenizerFiles
from ..fitting import capacity_of
from ..hardware import Machine, inspect_machine
from .facts import ModelFacts, read_model_facts
from .families import Capability, Experimental, Unsupported, family_of
from .fast_shape import fast_shape
from .known import known_model
from .listing import GIB, gguf_reason
from .locate import resolve_model
from .needs import held, held_choices, least_memory, longest_row, lora_recipe

LENGTHS = (512, 2048, 8192, 32768)
"""Tokens of the longest row, for which memory is told."""

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
    here: bool = Field(description="All weights lie on this machine, in safetensors, which alone are read.")
    other_weights: list[str] = Field(description="Files in formats that are not read, e.g. pickles.")
    licence: str | None = Field(description="Where whet knows the model; None: look at its page.")
    chat: bool = Field(description="Has a chat template of its own.")
    capabilities: dict[str, CapabilityReport]
    fast_path: str | None = Field(
        description="Why LoRA on it trains on plain transformers; None: on the fast path."
    )
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


def inspect_model(name: str, revision: str | None = None, machine: Machine | None = None) -> ModelReport:
    """Everything known of a model; its small files are fetched from the hub where they are not here.

    Args:
        name: ``demo``, a directory or a hub id.
        revision: hub branch, tag or commit.
        machine: instead of the one at hand.

    Raises:
        WhetError: ``model.*`` where there is no such model; ``tokenizer.*``, ``template.*`` where its files
            cannot be read.
    """
    from ..template_fit import template_for

    machine = machine or inspect_machine()
    path = resolve_model(name, revision)
    facts = read_model_facts(path, name)
    family, known = family_of(facts.model_type), known_model(name)
    files = TokenizerFiles.read(path)
    choices = {held(facts, machine, one).base_precision: one for one in held_choices(facts, machine)}
    first = lora_recipe(facts, LENGTHS[0], "auto")
    shape = fast_shape(facts, first.adapter, held(facts, machine, "auto"))
    return ModelReport(
        name=name,
        facts=facts,
        family=facts.family,
        known_family=bool(family.model_types),
        here=not facts.missing_weight_files,
        other_weights=sorted(one.name for one in path.iterdir() if one.suffix in (".bin", ".pt", ".gguf")),
        licence=known.licence if known else None,
        chat=facts.has_chat_template,
        capabilities={name: _said(able) for name, able in family.capabilities.items()},
        fast_path=shape.reason if isinstance(shape, Unsupported) else None,
        template=template_facts(RowTokenizer.from_files(files)) if files.chat_template else None,
        fitting_template=None if facts.has_chat_template else template_for(facts),
        gguf=gguf_reason(facts),
        memory_gib={
            shown: {
                tokens: round(least_memory(facts, machine, one, tokens).needed / GIB, 1)
                for tokens in LENGTHS
                if tokens <= (facts.max_positions or tokens)
            }
            for shown, one in choices.items()
        },
        capacity_gib=round(capacity_of(machine) / GIB, 1),
        longest={shown: longest_row(facts, machine, one) for shown, one in choices.items()},
    )


def _said(able: Capability) -> CapabilityReport:
    if isinstance(able, Unsupported):
        return CapabilityReport(status="unsupported", note=able.reason)
    if isinstance(able, Experimental):
        return CapabilityReport(status="experimental", note=able.note)
    return CapabilityReport(status="supported")
