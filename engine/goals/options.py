"""Other ways to the same goal, each planned: what it would take, and why one would want it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..models.needs import can_hold
from ..plan import Plan
from .draft import Draft
from .goal import Kind, Option
from .limits import GIB, WORTH, Limits, can_multiply_fp8

MOST = 6
MOST_EPOCHS = 3
LARGE_RANK = 32
TRIAL_STEPS = 20
SHORT = 0.5
"""Rows of which the mean is below this share of the longest leave much of a step empty."""


@dataclass(frozen=True)
class Wish:
    """An option before it is planned."""

    kind: Kind
    text: str
    why: str
    patch: dict[str, Any]


def find_options(draft: Draft, plan: Plan, limits: Limits) -> list[Option]:
    """Options that fit and are what they claim: faster ones take less time, smaller ones less memory."""
    found: list[Option] = []
    blocked = {finding.id for finding in plan.blocked()}
    for wish in _wishes(draft, plan, limits):
        if len(found) == MOST or not draft.free(wish.patch):
            continue
        other = limits.plan_of(draft.recipe(wish.patch))
        if not other.memory.fits or {one.id for one in other.blocked()} - blocked:
            continue
        if _true(wish.kind, plan, other):
            found.append(
                Option(
                    kind=wish.kind,
                    text=wish.text,
                    why=wish.why,
                    patch=wish.patch,
                    minutes=None if other.seconds is None else round(other.seconds / 60, 1),
                    memory_gib=round(other.memory.needed / GIB, 2),
                )
            )
    return found


def _true(kind: Kind, plan: Plan, other: Plan) -> bool:
    """Whether the option is what its kind says, by its own plan."""
    if kind == "less memory":
        return other.memory.needed < WORTH * plan.memory.needed
    if kind == "faster":
        if plan.seconds is None or other.seconds is None:
            return other.total_tokens < WORTH * plan.total_tokens
        return other.seconds < WORTH * plan.seconds
    return True


def _wishes(draft: Draft, plan: Plan, limits: Limits) -> Iterator[Wish]:
    recipe, lora = draft.recipe(), draft.recipe().adapter.kind != "none"
    if plan.seconds is None:
        why = "nothing is known of the speed here: after a short trial whet can say how long the whole takes"
        yield Wish("trial", f"{TRIAL_STEPS} steps only", why, {"training.max_steps": TRIAL_STEPS})
    yield from _longer(draft, plan)
    if lora and recipe.model.precision in ("nf4", "fp8") and plan.model.quantization is None:
        yield Wish("better", "base in 16 bits", "nothing is lost to rounding", {"model.precision": "auto"})
    if lora and recipe.adapter.rank < LARGE_RANK:
        rank = {"adapter.rank": LARGE_RANK, "adapter.alpha": LARGE_RANK}
        yield Wish("better", f"rank {LARGE_RANK}", "more room for what is new in the data", rank)
    if recipe.training.epochs > 1 and recipe.training.max_steps is None:
        patch: dict[str, Any] = {"training.epochs": 1.0, "eval.early_stopping": None}
        yield Wish("faster", "one pass over the data", "a first result soon; it may have learnt less", patch)
    plain = recipe.adapter.kind in ("lora", "rslora") and recipe.model.precision == "auto"
    if plain and can_multiply_fp8(recipe, plan, limits.machine):
        why = "this GPU multiplies in FP8; the rounding is measured before the first step (L12)"
        yield Wish("faster", "base in 8 bits (FP8)", why, {"model.precision": "fp8"})
    if lora and recipe.model.precision in ("auto", "fp8") and can_hold(plan.model, limits.machine, "nf4"):
        why = "leaves room for other programs; a little is lost to rounding"
        yield Wish("less memory", "base in 4 bits (QLoRA)", why, {"model.precision": "nf4"})
    if recipe.training.gradient_checkpointing == "auto":
        why = "activations are computed again instead of held: the same result, later"
        yield Wish("less memory", "recompute", why, {"training.gradient_checkpointing": "on"})
    yield from _shorter(draft, plan)


def _longer(draft: Draft, plan: Plan) -> Iterator[Wish]:
    """All rows where the time limit cut them, or one pass more."""
    training = draft.recipe().training
    if training.max_steps is not None:
        why = "sees all of the data, beyond the limit of time"
        yield Wish("better", "all steps", why, {"training.max_steps": None})
    elif training.epochs < MOST_EPOCHS and plan.seconds is not None:
        more = training.epochs + 1
        why = "learns the rows more closely; watch held-out loss"
        yield Wish("better", f"{more:g} passes over the data", why, {"training.epochs": more})


def _shorter(draft: Draft, plan: Plan) -> Iterator[Wish]:
    """Rows cut where 95 in 100 are whole, where the longest ones decide memory."""
    lengths, held = plan.data.report.train.length, draft.recipe().model.max_length
    if lengths.p95 < SHORT * plan.resolved.longest and lengths.p95 >= 8:
        why = f"the longest rows decide memory; 5 in 100 would be cut, at {lengths.p95:,} tokens"
        if lengths.p95 < held:
            yield Wish("less memory", f"rows cut at {lengths.p95:,}", why, {"model.max_length": lengths.p95})
