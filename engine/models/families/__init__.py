"""Family descriptors, one file each. To add one: write the file, list it here."""

from __future__ import annotations

from . import llama, mistral, qwen2, qwen3, unknown
from .descriptor import Capability, Experimental, Family, Supported, Unsupported

FAMILIES: tuple[Family, ...] = (llama.FAMILY, mistral.FAMILY, qwen2.FAMILY, qwen3.FAMILY)
UNKNOWN: Family = unknown.FAMILY

__all__ = [
    "FAMILIES",
    "UNKNOWN",
    "Capability",
    "Experimental",
    "Family",
    "Supported",
    "Unsupported",
    "family_of",
]


def family_of(model_type: str) -> Family:
    """The family of a config's ``model_type``; ``unknown`` (never an error) where none matches."""
    return next((family for family in FAMILIES if model_type in family.model_types), UNKNOWN)
