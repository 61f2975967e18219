"""Mend what findings have a patch for, then fit memory and time; each change is said, each failure too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..findings import Finding
from ..fixing import ACCEPT
from ..fixing import propose as patches_of
from ..hardware import Machine, supports_fp8
from ..methods.kinds import LANGUAGE_MODELS
from ..models.needs import can_hold
from ..plan import Plan
from ..recipe import Recipe
from ..recipe_files import to_yaml
from .draft import Draft, PlanOf

GIB = 2**30
ROUNDS = 3
MEMORY_FINDING = "L11"
LENGTH = "model.max_length"
WORTH = 0.9
"""Another setting must take less than this share of the time or memory to be worth a change."""
FEWEST_STEPS_LEFT = 20
LEAST_SHARE = 0.1
"""Of the rows; a run that sees fewer is no longer the one that was wanted."""


@dataclass(frozen=True)
class Limits:
    """What the plan of a draft is held against, and how it is made."""

    plan_of: PlanOf
    machine: Machine
    minutes: float | None


def mend(draft: Draft, plan: Plan, plan_of: PlanOf) -> Plan:
    """Apply the patches of errors and warnings, plan again, at most three times.

    Left alone: what an override names, what only silences a finding, and memory and length, which have rules
    of their own (:func:`fit_memory`, :func:`.rules.length`).
    """
    for _ in range(ROUNDS):
        findings = [finding for finding in plan.findings if _mendable(draft, finding)]
        before = draft.recipe()
        proposed = patches_of(to_yaml(before), findings) if findings else None
        if proposed is None or not proposed.applied:
            break
        for finding in proposed.applied:
            _take(draft, finding)
        if draft.recipe() == before:
            break
        plan = plan_of(draft.recipe())
    return plan


def _mendable(draft: Draft, finding: Finding) -> bool:
    patch = finding.fix.patch if finding.fix else {}
    return (
        finding.severity != "note"
        and finding.id != MEMORY_FINDING
        and bool(patch)
        and not {ACCEPT, LENGTH} & set(patch)
        and draft.free(patch)
    )


def _take(draft: Draft, finding: Finding) -> None:
    """Put a finding's patch into the draft; lists that several findings extend grow."""
    assert finding.fix is not None
    for key, value in finding.fix.patch.items():
        if key in ("data.drop", "model.end_tokens"):
            value = list(dict.fromkeys([*draft.values.get(key, []), *value]))
        draft.set(key, value, f"{finding.id}: {finding.title}")
    said = f"{finding.title} {finding.fix.text}"
    if finding.fix.command:
        said += f" ({finding.fix.command})"
    if "export.gguf" in finding.fix.patch and draft.goal.export:
        asked = ", ".join(draft.goal.export)
        draft.unmet.append(f"No GGUF is written although {asked} was asked for. {said}")
    else:
        draft.changed.append(said)


# --- memory


def fit_memory(draft: Draft, plan: Plan, limits: Limits) -> Plan:
    """Hold the base in fewer bits, then what the planner itself knows, until the plan fits."""
    if plan.memory.fits:
        return plan
    needed, capacity = plan.memory.needed / GIB, plan.memory.capacity / GIB
    for patch, text in _ladder(draft, plan, limits.machine):
        if not draft.free(patch):
            continue
        trial = limits.plan_of(draft.recipe(patch))
        if trial.memory.fits:
            reason = f"{text}, since {needed:.1f} GiB would be needed and there are {capacity:.1f}"
            for key, value in patch.items():
                draft.set(key, value, reason)
            draft.changed.append(f"{text[0].upper()}{text[1:]}: {needed:.1f} GiB do not fit {capacity:.1f}.")
            return trial
    draft.unmet.append(
        f"Training needs about {needed:.1f} GiB, there are {capacity:.1f}; no setting makes this model fit."
    )
    return plan


def _ladder(draft: Draft, plan: Plan, machine: Machine) -> Iterator[tuple[dict[str, Any], str]]:
    """From what costs least quality to what costs most."""
    patch: dict[str, Any] = {}
    recipe = draft.recipe()
    if recipe.adapter.train_embeddings and draft.free({"adapter.train_embeddings": None}):
        patch = {"adapter.train_embeddings": False}
        yield patch, "embedding and head stay as they are"
    if recipe.adapter.kind != "none":
        if recipe.adapter.kind != "dora" and can_multiply_fp8(recipe, plan, machine):
            yield {**patch, "model.precision": "fp8"}, "base weights are held in 8 bits"
        if can_hold(plan.model, machine, "nf4"):
            yield {**patch, "model.precision": "nf4"}, "base weights are held in 4 bits (QLoRA)"
    for one in plan.alternatives:
        if one.memory.fits:
            yield one.patch, one.text.rstrip(".").lower()


# --- time


def fit_time(draft: Draft, plan: Plan, limits: Limits, *, cut: bool) -> Plan:
    """Fewer passes, then FP8 where it is faster, then (``cut``) fewer steps, until the time suffices."""
    limit = limits.minutes
    if limit is None or not late(plan, limit):
        return plan
    plan = _fewer_passes(draft, plan, limits, 60 * limit)
    if late(plan, limit):
        plan = faster_products(draft, plan, limits)
    if late(plan, limit) and cut:
        plan = _fewer_steps(draft, plan, limits, 60 * limit)
    return plan


def late(plan: Plan, minutes: float | None) -> bool:
    """Whether a plan is known to take longer; its seconds are rounded to a tenth."""
    return minutes is not None and plan.seconds is not None and plan.seconds > 60 * minutes + 0.05


def duration(seconds: float) -> str:
    """In words, e.g. `40 seconds`, `12 minutes`, `3.5 hours`."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _fewer_passes(draft: Draft, plan: Plan, limits: Limits, seconds: float) -> Plan:
    before = draft.recipe().training
    if not draft.free({"training.epochs": None, "training.max_steps": None}):
        return plan
    epochs = before.epochs
    while plan.seconds is not None and plan.seconds > seconds and epochs > 1:
        epochs = max(1.0, epochs - 1)
        draft.set("training.epochs", epochs, f"as many passes as {seconds / 60:g} minutes allow")
        if epochs == 1 and draft.values.pop("eval.early_stopping", None) is not None:
            draft.reasons.pop("eval.early_stopping")
        plan = limits.plan_of(draft.recipe())
    if epochs != before.epochs:
        draft.changed.append(
            f"{epochs:g} instead of {before.epochs:g} passes, to stay within {seconds / 60:g} minutes."
        )
    return plan


def can_multiply_fp8(recipe: Recipe, plan: Plan, machine: Machine) -> bool:
    """Whether the base may be held and multiplied in FP8 here; models with a head of classes are not."""
    known = recipe.method.kind in LANGUAGE_MODELS and can_hold(plan.model, machine, "fp8")
    return known and supports_fp8(machine)


def faster_products(draft: Draft, plan: Plan, limits: Limits) -> Plan:
    """Hold and multiply the base in FP8 where the GPU has the units and the time model says it is faster."""
    recipe = draft.recipe()
    patch = {"model.precision": "fp8"}
    possible = can_multiply_fp8(recipe, plan, limits.machine)
    if not possible or not draft.free(patch) or recipe.adapter.kind not in ("lora", "rslora"):
        return plan
    if recipe.model.precision not in ("auto", "bf16") or plan.model.quantization is not None:
        return plan
    trial = limits.plan_of(draft.recipe(patch))
    if plan.seconds is None or trial.seconds is None or trial.seconds > WORTH * plan.seconds:
        return plan
    faster = plan.seconds / trial.seconds
    draft.set("model.precision", "fp8", f"this GPU multiplies in FP8: about {faster:.1f} times as fast")
    return trial


def _fewer_steps(draft: Draft, plan: Plan, limits: Limits, seconds: float) -> Plan:
    if plan.seconds is None or not draft.free({"training.max_steps": None}):
        return plan
    total = plan.resolved.total_steps
    steps = max(1, int(total * seconds / plan.seconds))
    share = steps / plan.resolved.steps_per_epoch
    draft.set("training.max_steps", steps, f"as many steps as {seconds / 60:g} minutes allow")
    draft.changed.append(
        f"It ends after {steps:,} of {total:,} steps ({share:.0%} of the rows), to stay within "
        f"{seconds / 60:g} minutes."
    )
    if steps < FEWEST_STEPS_LEFT or share < LEAST_SHARE:
        draft.unmet.append(
            f"{seconds / 60:g} minutes are enough for {share:.0%} of the rows only: all of them would take "
            f"about {duration(plan.seconds)}."
        )
    return limits.plan_of(draft.recipe())
