"""Family descriptors, one file each. To add one: write the file, list it here."""

from __future__ import annotations

from . import (
    bert,
    csm,
    deepseek,
    gemma,
    gemma2,
    gemma3,
    granite,
    llama,
    mistral,
    mixtral,
    modernbert,
    mpnet,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
    unknown,
    whisper,
    xlm_roberta,
)
from .descriptor import Capability, Experimental, Family, FastLayout, Supported, Unsupported
from .fast_layout import FastSettings, fast_settings

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    mistral.FAMILY,
    mixtral.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    qwen3_moe.FAMILY,
    gemma.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    gemma3.MULTIMODAL,
    phi3.FAMILY,
    granite.FAMILY,
    smollm3.FAMILY,
    deepseek.V2,
    deepseek.V3,
    bert.FAMILY,
    xlm_roberta.FAMILY,
    mpnet.FAMILY,
    modernbert.FAMILY,
    whisper.FAMILY,
    csm.FAMILY,
)
UNKNOWN: Family = unknown.FAMILY

__all__ = [
    "FAMILIES",
    "UNKNOWN",
    "Capability",
    "Experimental",
    "Family",
    "FastLayout",
    "FastSettings",
    "Supported",
    "Unsupported",
    "family_of",
    "fast_settings",
]


def family_of(model_type: str) -> Family:
    """The family of a config's ``model_type``; ``unknown`` (never an error) where none matches."""
    return next((family for family in FAMILIES if model_type in family.model_types), UNKNOWN)
