"""Before a run with an FP8 base trains: what rounding does to this model on this data, as a finding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ...export.base_weights import BaseWeights
from ...findings import Finding, Fix
from ...models.fast_path import DecoderProgram, causal_model, program_of
from ...models.fast_path.comparison import Comparison, compare_with_16_bit, fused_projections
from ...models.loading import ModelHandle
from .packed_steps import PaddingFreeCollator, TokenRow, micro_batch

TOKENS = 2048
"""Of the first training rows; a few hundred supervised tokens settle a mean to a few per cent."""

MOST_DIVERGENCE = 0.02
"""nats: about what good 4-bit formats cost. Eight bits that cost as much are the wrong eight bits."""
MOST_LOSS = 0.005
"""Relative change of the loss: what an FP8 run may end away from a 16-bit one."""


def fp8_finding(handle: ModelHandle, rows: Iterable[Mapping[str, Any]]) -> Finding:
    """L12: the FP8 model beside its 16-bit checkpoint, layer by layer and in its predictions.

    Args:
        handle: the loaded model, adapter included.
        rows: tokenised training rows; the first that fill :data:`TOKENS` are used.
    """
    program = program_of(handle.model)
    weights = BaseWeights(handle.path)
    names = {
        part: f"{path.removesuffix('.base_layer')}.weight"
        for path, part in causal_model(handle.model).named_modules()
    }
    if program is None or not all(name in weights.file_of for name in _held(program, names)):
        return Finding(
            id="L12",
            severity="note",
            title="The FP8 base was not compared with the 16-bit checkpoint: its layers are not the "
            "checkpoint's own tensors, or the model is not on the fast path.",
        )
    batch = micro_batch(_first(rows)).to(handle.device)
    training = handle.model.training
    handle.model.eval()
    found = compare_with_16_bit(
        program, lambda part: weights.tensor(names[part]), batch.packed, batch.places_S, batch.labels_S
    )
    handle.model.train(training)
    return describe(found)


def _held(program: DecoderProgram, names: Mapping[torch.nn.Module, str]) -> list[str]:
    projections = [projection for layer in program.layers for projection in fused_projections(layer)]
    return [names[part] for projection in projections for part in projection.layers]


def _first(rows: Iterable[Mapping[str, Any]]) -> list[TokenRow]:
    """Rows with supervised tokens, up to :data:`TOKENS` tokens, at least one."""
    taken: list[TokenRow] = []
    for row in rows:
        documents: list[TokenRow] = PaddingFreeCollator()([row])["rows"]
        if not any((one.labels >= 0).any() for one in documents):
            continue
        if taken and sum(len(one.input_ids) for one in (*taken, *documents)) > TOKENS:
            break
        taken += documents
    return taken


def describe(found: Comparison) -> Finding:
    """The finding: a warning where predictions or loss are too far off."""
    change = (found.loss - found.loss_16_bit) / max(found.loss_16_bit, 1e-12)
    far = found.divergence > MOST_DIVERGENCE or abs(change) > MOST_LOSS
    worst = max(range(len(found.layers)), key=found.layers.__getitem__)
    return Finding(
        id="L12",
        severity="warning" if far else "note",
        title=f"FP8 base beside the 16-bit checkpoint, on {found.tokens:,} supervised tokens: loss "
        f"{found.loss:.4f} against {found.loss_16_bit:.4f} ({change:+.2%}), divergence "
        f"{found.divergence:.4f} nats a token.",
        evidence={
            "loss": round(found.loss, 5),
            "loss_16_bit": round(found.loss_16_bit, 5),
            "divergence_nats": round(found.divergence, 6),
            "hidden_error": round(found.hidden, 4),
            "worst_layer": worst,
            "layer_errors": [round(error, 4) for error in found.layers],
            "limits": {"divergence_nats": MOST_DIVERGENCE, "loss_change": MOST_LOSS},
        },
        fix=Fix(text="Hold the base in 16 bits.", patch={"model.precision": "auto"}) if far else None,
    )
