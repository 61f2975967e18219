"""When a plan does not fit: other settings for the same optimizer step, each with its own estimate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from .data.inspection import DataReport
from .hardware import Machine
from .models.facts import ModelFacts
from .models.memory import Memory, estimate_memory
from .recipe import Recipe
from .recipe_files import patched
from .resolve import Resolved, resolve

SHORTEST = 256
"""Rows below this length are rarely worth training on, so shorter is not proposed."""


class Alternative(BaseModel):
    """Another way to run the same recipe: a patch and what it would need."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    patch: dict[str, Any]
    memory: Memory


def find_alternatives(
    recipe: Recipe,
    resolved: Resolved,
    facts: ModelFacts,
    machine: Machine,
    report: DataReport,
    memory: Memory,
) -> list[Alternative]:
    """Ways out of ``memory``, those that fit first, each of the two groups in order of how little it changes.

    Smaller micro-batches come with more accumulation, so the optimizer step, and with it the result, stay the
    same; checkpointing recomputes the same numbers. Only nf4 and shorter rows change what is learnt.
    """
    found: list[Alternative] = []
    for text, patch in _candidates(recipe, resolved, facts):
        changed = patched(recipe, patch)
        other, _ = resolve(changed, facts, machine, report, resolved.sequences)
        estimate = estimate_memory(facts, changed.adapter, other, report, machine)
        if estimate.peak < memory.peak:
            found.append(Alternative(text=text, patch=patch, memory=estimate))
    return sorted(found, key=lambda one: not one.memory.fits)


def _candidates(
    recipe: Recipe, resolved: Resolved, facts: ModelFacts
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Patches from the mildest to the strongest; the strong ones build on the mild ones."""
    smaller = list(_smaller_batches(resolved))
    checkpointing: dict[str, Any] = {"training.gradient_checkpointing": "on"}
    if not resolved.gradient_checkpointing:
        yield "Recompute activations in the backward pass.", checkpointing
    for batch, patch in smaller:
        yield f"Micro-batches of {batch} with more accumulation: the same optimizer step.", patch
    least = {**checkpointing, **(smaller[-1][1] if smaller else {})}
    if smaller and not resolved.gradient_checkpointing:
        yield "Smallest micro-batches and recomputed activations.", least
    if recipe.adapter.kind == "none":
        yield "Train a LoRA adapter instead of all weights.", {**least, "adapter.kind": "lora"}
        return
    if resolved.base_precision not in ("nf4", "int8"):
        yield "Base weights in 4 bits (QLoRA).", {"model.precision": "nf4"}
        least = {**least, "model.precision": "nf4"}
        yield "Base weights in 4 bits, smallest micro-batches, recomputed activations.", least
    length = resolved.longest // 2
    while length >= SHORTEST:
        patch = {**least, "model.max_length": length}
        yield f"All of that, and rows cut at {length} tokens.", patch
        length //= 2


def _smaller_batches(resolved: Resolved) -> Iterator[tuple[int, dict[str, Any]]]:
    """Divisors of the micro-batch, largest first, with the accumulation that keeps the rows a step."""
    rows = resolved.rows_per_step
    for batch in range(resolved.batch_size - 1, 0, -1):
        if resolved.batch_size % batch == 0:
            yield (
                batch,
                {"training.batch_size": batch, "training.gradient_accumulation": rows // batch},
            )
