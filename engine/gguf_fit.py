"""Whether a GGUF can be made of a plan's model, and whether llama.cpp is here and works. Light."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from .errors import WhetError
from .export.other_models import REASONS, no_gguf_of
from .export.task_heads import KINDS, no_gguf
from .hardware import Machine
from .models.facts import ModelFacts
from .recipe import Recipe

LLAMA_CPP = "llama-cpp-python"
BROKEN = (
    "gguf.llama_cpp_missing",
    "gguf.native_crash",
    "gguf.native_abort",
    "gguf.native_hang",
    "gguf.native_failed",
)
"""Refusals that speak against llama.cpp as it is installed, not against the model."""


def gguf_facts(recipe: Recipe, facts: ModelFacts, machine: Machine) -> dict[str, Any]:
    """For the checks: whether llama.cpp is here and works, and why the model has no GGUF."""
    here = LLAMA_CPP in machine.versions and find_spec("llama_cpp") is not None
    refusal = gguf_refusal(recipe, facts, here)
    said = None if refusal is None else refusal.message
    broken = refusal is not None and refusal.code in BROKEN
    return {
        "llama_cpp": here,
        "gguf_refusal": None if broken else said,
        "llama_cpp_says": said if broken else None,
    }


def gguf_refusal(recipe: Recipe, facts: ModelFacts, llama_cpp: bool) -> WhetError | None:
    """Why this model has no GGUF, or llama.cpp cannot make one; known before hours of training."""
    if not (recipe.export.gguf or recipe.export.adapter_gguf):
        return None
    if recipe.method.kind in KINDS:
        return no_gguf()
    if facts.architecture in REASONS:
        return no_gguf_of(facts.architecture)
    from .export.gguf.probe import conversion_refusal
    from .export.importance_rows import importance_refusal

    if (refusal := importance_refusal(recipe.export)) is not None:
        return refusal
    return conversion_refusal(facts.path, facts.embedding_rows if llama_cpp else None)
