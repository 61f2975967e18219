"""Bytes a run will write, by kind, and the folder each kind goes to."""

from __future__ import annotations

from pathlib import Path

from .export.gguf.types import GGUF_TYPES
from .export.targets.table import TARGETS, Target
from .models.facts import ModelFacts
from .models.memory import moment_bytes
from .recipe import ExportSection, Recipe
from .resolve import Resolved

FOLDERS = {"download": "hub", "temporary": "temporary"}
"""Kind -> folder of :class:`whet.engine.hardware.Disk`; all others lie in whet's home."""
PROOF_BYTES = 400 << 20
"""Distributions that the smoke test keeps while it compares, see :class:`.export.smoke_cases.Limits`."""
TEMPORARY_BYTES = 64 << 20
"""Logs of subprocesses and the vocabulary that is tried in llama.cpp."""


def disk_bytes(recipe: Recipe, resolved: Resolved, facts: ModelFacts) -> dict[str, int]:
    """What will lie on the disk at the worst moment, by kind.

    Checkpoints hold the trained weights and the optimizer; besides those kept there are the best one and the
    one being written. Merged weights are 16-bit. Each GGUF is written from a 16-bit one, which is temporary
    unless it was asked for itself. A hub model whose weights are not here yet is downloaded first.
    """
    full = recipe.adapter.kind == "none"
    # PEFT writes a tied matrix under both of its names.
    twice = facts.parameters.embedding if facts.tied and recipe.adapter.whole_ends() else 0
    trained = 4 * (resolved.trainable_parameters + twice)
    states = moment_bytes(facts, recipe.adapter, resolved.optimizer)
    written = export_bytes(recipe.export, facts, merges=not full)
    if full:
        written["merged"] = 2 * facts.parameters.total  # the trained model itself
    return {
        "checkpoints": (recipe.training.keep_checkpoints + 2) * (trained + states),
        "adapter": 0 if full else trained,
        **written,
        "download": _download(recipe, facts),
        "temporary": TEMPORARY_BYTES if recipe.export.gguf else 0,
    }


def export_bytes(section: ExportSection, facts: ModelFacts, *, merges: bool) -> dict[str, int]:
    """What one export writes beside the trained weights, all its files together, by kind.

    ``merges`` says that an adapter is merged first; the merged weights then lie there while others are made
    of them. An adapter's own GGUF is proven over a 16-bit one of its base.
    """
    weights = facts.parameters.total
    sizes = {name: GGUF_TYPES[name].bits_per_weight / 8 for name in section.gguf}
    if sizes:
        sizes["f16"] = 2.0
    proof = min(PROOF_BYTES, 2 * 4 * facts.vocab_size * 512)
    few_bits = [name for name, target in TARGETS.items() if target.linear_bytes and getattr(section, name)]
    base = 2 * weights if section.adapter_gguf and section.smoke_test else 0
    return {
        "merged": 2 * weights if merges and (section.merged or sizes or few_bits) else 0,
        "gguf": int(weights * sum(sizes.values())),
        "proof": base + (proof if sizes and section.smoke_test else 0),
        **{name: _few_bits(TARGETS[name], facts) for name in few_bits},
    }


def target_bytes(recipe: Recipe, resolved: Resolved, facts: ModelFacts) -> dict[str, int]:
    """Of each target that can be written of a run: ``merged`` and those of :data:`TARGETS`."""
    sizes = {"merged": 2 * facts.parameters.total}
    for name, target in TARGETS.items():
        if target.linear_bytes:
            sizes[name] = _few_bits(target, facts)
        elif recipe.beyond_lora() is None:
            sizes[name] = 4 * resolved.trainable_parameters
    return sizes


def _few_bits(target: Target, facts: ModelFacts) -> int:
    linear = facts.parameters.decoder_linear
    return int(target.linear_bytes * linear + 2 * (facts.parameters.total - linear))


def _download(recipe: Recipe, facts: ModelFacts) -> int:
    """Weights of a hub model that are still to come; a folder of one's own gets none."""
    name = recipe.model.name
    if not facts.missing_weight_files or name == "demo" or Path(name).expanduser().is_dir():
        return 0
    width = {"nf4": 0.6, "fp4": 0.6, "int8": 1.1}.get(facts.quantization or "", 2.0)
    return int(facts.parameters.total * (4 if facts.dtype == "float32" else width))
