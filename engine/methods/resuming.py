"""Is a checkpoint one of this very run? Names, shapes, random numbers, data cursor, before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel, get_peft_model_state_dict
from pydantic import BaseModel, ConfigDict

from ..findings import Finding, Fix
from ..models.stored_tensors import stored_tensors

if TYPE_CHECKING:
    from ..plan import Plan

CURSOR = "cursor.json"
RNG, OPTIMIZER = "rng_state.pth", "optimizer.pt"
RNG_OF_RANK = "rng_state_*.pth"
"""What each of several processes writes, by its number."""


class Cursor(BaseModel):
    """What the order of the rows follows from, beside the step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows_per_step: int
    sequences: int
    seed: int
    data: str


def cursor_of(plan: Plan) -> Cursor:
    """Of a run's plan."""
    resolved = plan.resolved
    return Cursor(
        rows_per_step=resolved.rows_per_step,
        sequences=resolved.sequences,
        seed=plan.recipe.training.seed,
        data=plan.data.digest,
    )


def ranks_in(checkpoint: Path) -> int:
    """How many processes wrote a checkpoint; 0 where no random numbers lie in it."""
    return 1 if (checkpoint / RNG).is_file() else len(list(checkpoint.glob(RNG_OF_RANK)))


def deepspeed_ranks(checkpoint: Path) -> int:
    """How many processes DeepSpeed's states in a checkpoint are of; 0 for a checkpoint of whet's own kind."""
    return len(list(checkpoint.glob("*/*_optim_states.pt")))


def look_at_checkpoint(folder: Path, model: Any, plan: Plan) -> list[Finding]:
    """T05 where resuming from ``folder`` would not go on with this run.

    Args:
        folder: a complete checkpoint.
        model: as it was built for this attempt, adapter included.
        plan: of the run, with the overrides of this attempt.
    """
    wanted = _trained_shapes(model)
    stored = {name: tensor.shape for name, tensor in stored_tensors(folder.glob("*.safetensors")).items()}
    lost = sorted(set(wanted) - set(stored))
    strange = sorted(set(stored) - set(wanted))
    other = [f"{name}: {stored[name]}, not {wanted[name]}" for name in wanted
             if name in stored and stored[name] != wanted[name]]  # fmt: skip
    absent = [] if ranks_in(folder) else [RNG]
    absent += [] if (folder / OPTIMIZER).is_file() or deepspeed_ranks(folder) else [OPTIMIZER]
    found = []
    if lost or strange or other or absent:
        found.append(_other_model(folder, lost, strange, other, absent))
    file = folder / CURSOR
    if file.is_file():
        before, now = Cursor.model_validate(json.loads(file.read_text(encoding="utf-8"))), cursor_of(plan)
        if before != now:
            found.append(_other_order(folder, before, now, plan))
    return found


def _trained_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of what a checkpoint of the model holds."""
    if isinstance(model, PeftModel):
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        return {name: tuple(tensor.shape) for name, tensor in state.items()}
    tied = set(model.all_tied_weights_keys)
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in tied}


def _other_model(
    folder: Path, lost: list[str], strange: list[str], other: list[str], absent: list[str]
) -> Finding:
    what = next(iter(other or lost or strange or absent))
    return Finding(
        id="T05",
        severity="error",
        title=f"{folder.name} is not a checkpoint of this model and adapter: {what}.",
        evidence={
            "missing": lost[:5],
            "unknown": strange[:5],
            "shapes": other[:5],
            "files_missing": absent,
            "checkpoint": str(folder),
        },
        fix=Fix(
            text="Put the run's own files back (model, adapter settings, checkpoint), or delete the "
            "checkpoint to go on from the one before it; else start a new run."
        ),
    )


def _other_order(folder: Path, before: Cursor, now: Cursor, plan: Plan) -> Finding:
    changed = {
        name: [value, getattr(now, name)]
        for name, value in before.model_dump().items()
        if value != getattr(now, name)
    }
    patch: dict[str, Any] = {}
    if "seed" in changed:
        patch["training.seed"] = before.seed
    batch = plan.resolved.batch_size
    if "rows_per_step" in changed:
        whole = before.rows_per_step % batch == 0
        size = batch if whole else before.rows_per_step
        patch |= {"training.batch_size": size, "training.gradient_accumulation": before.rows_per_step // size}
    overrides = " ".join(f"{key}={value}" for key, value in patch.items())
    return Finding(
        id="T05",
        severity="warning",
        title=f"Since {folder.name} {', '.join(changed)} changed: the resumed steps see some rows twice and "
        "others not at all in this epoch.",
        evidence={name: f"{was} before, {new} now" for name, (was, new) in changed.items()},
        fix=Fix(
            text="Resume with the settings of before.",
            patch=patch,
            command=f"whet resume last {overrides}" if patch else None,
        ),
    )
