"""When a plan does not fit: other settings of the same recipe, each with its own estimate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from .data.inspection import DataReport
from .fitting import COMPARING, room_of
from .hardware import Machine
from .models.facts import ModelFacts
from .models.memory import Memory
from .parallel.fitting import fit_ranks
from .recipe import Recipe
from .recipe_files import patched
from .resolve import Resolved, resolve
from .scheduler import largest_rank, longest_sequence

SHORTEST = 256
"""Rows below this length are rarely worth training on, so shorter is not proposed."""
LENGTH_STEP = 256
SMALLEST_RANK = 4

Candidate = tuple[str, dict[str, Any]]


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

    On the fast path the planner has regrouped and recomputed already, as far as the recipe let it; what is
    left is more recomputing where the recipe forbade it, fewer bits, a smaller rank, shorter rows. Elsewhere,
    and where a loss compares the rows of a micro-batch, smaller ones come with more accumulation, so the
    optimizer step stays the same.
    """
    every = _scheduled if resolved.schedule is not None else _plain
    found = list(_more_gpus(recipe, facts, machine, report, resolved.sequences))
    for text, patch in every(recipe, resolved, facts, machine):
        changed = patched(recipe, patch)
        other, _ = resolve(changed, facts, machine, report, resolved.sequences)
        estimate = fit_ranks(changed, other, facts, report, machine).memory
        if estimate.peak < memory.peak:
            found.append(Alternative(text=text, patch=patch, memory=estimate))
    return sorted(found, key=lambda one: not one.memory.fits)


def _more_gpus(
    recipe: Recipe, facts: ModelFacts, machine: Machine, report: DataReport, sequences: int
) -> Iterator[Alternative]:
    """The machine's GPUs together, where the recipe asks for fewer: the step stays the same."""
    if recipe.hardware.gpus == "auto":
        return  # that is what was planned
    freed = patched(recipe, {"hardware.gpus": "auto"})
    alone, _ = resolve(freed, facts, machine, report, sequences)
    shared = fit_ranks(freed, alone, facts, report, machine)
    ranks = shared.resolved.ranks
    if ranks > 1 and shared.memory.fits:
        text = f"{ranks} GPUs hold it in shares (FSDP): the same optimizer step."
        yield Alternative(text=text, patch={"hardware.gpus": ranks}, memory=shared.memory)


def _scheduled(
    recipe: Recipe, resolved: Resolved, facts: ModelFacts, machine: Machine
) -> Iterator[Candidate]:
    """From the mildest to the strongest; the strong ones build on the mild ones."""
    least: dict[str, Any] = {}
    if recipe.training.gradient_checkpointing == "off":
        least = {"training.gradient_checkpointing": "auto"}
        yield "Let the planner recompute activations in the backward pass.", least
    if resolved.optimizer == "adamw" and "bitsandbytes" in machine.versions:
        least = {**least, "training.optimizer": "adamw_8bit"}
        yield "The optimizer's states in 8 bits.", least
    if recipe.adapter.train_embeddings:
        frozen = {"adapter.train_embeddings": False, "training.embedding_learning_rate": None}
        least = {**least, **frozen}
        yield "Embedding and head stay as they are.", least
    if resolved.method in COMPARING:
        for batch, patch in _smaller_comparisons(recipe, resolved):
            least = {**least, **patch}
            yield f"Micro-batches of {batch} with more accumulation.", least
    yield from _smaller_rank(recipe, resolved, facts, machine, least)
    shorter = [(resolved, least, "Rows")]
    if resolved.base_precision not in ("nf4", "int8"):
        least = {**least, "model.precision": "nf4"}
        in_nf4 = resolved.model_copy(update={"base_precision": "nf4"})
        yield "Base weights in 4 bits (QLoRA).", least
        yield from _smaller_rank(recipe, in_nf4, facts, machine, least)
        shorter.append((in_nf4, least, "Base weights in 4 bits, and rows"))
    for held, patch, what in shorter:
        fitting = longest_sequence(facts, recipe.adapter, held, room_of(machine, held.ranks)) or 0
        length = fitting // LENGTH_STEP * LENGTH_STEP
        if _shortest(recipe) <= length < resolved.longest:
            text = f"{what} cut at {length:,} tokens, about the longest that fits."
            yield text, {**patch, "model.max_length": length}


def _smaller_rank(
    recipe: Recipe, resolved: Resolved, facts: ModelFacts, machine: Machine, least: dict[str, Any]
) -> Iterator[Candidate]:
    """The largest power of two that fits, where a smaller rank is enough."""
    room = room_of(machine, resolved.ranks)
    most = largest_rank(facts, recipe.adapter, resolved, room, resolved.longest) or 0
    rank = 1 << (most.bit_length() - 1) if most else 0
    if SMALLEST_RANK <= rank < recipe.adapter.rank:
        yield f"Rank {rank}: the largest that fits is {most}.", {**least, "adapter.rank": rank}


def _plain(recipe: Recipe, resolved: Resolved, facts: ModelFacts, machine: Machine) -> Iterator[Candidate]:
    """From the mildest to the strongest, for models that train on plain transformers."""
    smaller = list(_smaller_batches(recipe, resolved))
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
    while length >= _shortest(recipe):
        patch = {**least, "model.max_length": length}
        yield f"All of that, and rows cut at {length} tokens.", patch
        length //= 2


def _shortest(recipe: Recipe) -> int:
    """Of rows worth training on; an answer that is written has its place beside them."""
    return SHORTEST + (recipe.method.max_completion_length if recipe.method.kind == "grpo" else 0)


def _smaller_comparisons(recipe: Recipe, resolved: Resolved) -> Iterator[tuple[int, dict[str, Any]]]:
    """As :func:`_smaller_batches`; a rated answer is measured against another of its micro-batch."""
    fewest = 2 if resolved.texts_per_row == 1 and not resolved.answers else 1
    return ((batch, patch) for batch, patch in _smaller_batches(recipe, resolved) if batch >= fewest)


def _smaller_batches(recipe: Recipe, resolved: Resolved) -> Iterator[tuple[int, dict[str, Any]]]:
    """Divisors of the micro-batch, largest first, with the accumulation that keeps the rows a step, and as
    many answers written before a step."""
    rows = resolved.rows_per_step
    for batch in range(resolved.batch_size - 1, 0, -1):
        if resolved.batch_size % batch == 0:
            patch = {"training.batch_size": batch, "training.gradient_accumulation": rows // batch}
            if recipe.method.kind == "grpo" and recipe.method.steps_per_generation is not None:
                patch["method.steps_per_generation"] = resolved.answers // batch
            yield batch, patch
