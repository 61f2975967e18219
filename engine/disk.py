"""Bytes a run will write under whet's home."""

from __future__ import annotations

from .export.gguf.types import GGUF_TYPES
from .models.facts import ModelFacts
from .models.memory import ADAMW_8BIT_BYTES
from .recipe import Recipe
from .resolve import Resolved


def disk_bytes(recipe: Recipe, resolved: Resolved, facts: ModelFacts) -> dict[str, int]:
    """What will lie on the disk at the worst moment, by kind.

    Checkpoints hold the trained weights and the optimizer; besides those kept there are the best one and the
    one being written. Merged weights are 16-bit. Each GGUF is written from a 16-bit one, which is temporary
    unless it was asked for itself.
    """
    full = recipe.adapter.kind == "none"
    trained = 4 * resolved.trainable_parameters
    states = int(
        resolved.trainable_parameters * (ADAMW_8BIT_BYTES if resolved.optimizer == "adamw_8bit" else 8)
    )
    weights = facts.parameters.total
    export = recipe.export
    sizes = {name: GGUF_TYPES[name].bits_per_weight / 8 for name in export.gguf}
    if sizes:
        sizes["f16"] = 2.0
    return {
        "checkpoints": (recipe.training.keep_checkpoints + 2) * (trained + states),
        "adapter": 0 if full else trained,
        "merged": 2 * weights if export.merged or export.gguf or full else 0,
        "gguf": int(weights * sum(sizes.values())),
    }
