"""How far a program with rounded weights is from the 16-bit checkpoint, layer by layer, on given rows.

Two streams of hidden states go through the decoder side by side: one as it will train, one whose base
products take the checkpoint's own weights. Only one layer's weights stand in 16 bits at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from whet.kernels.lora_base import DenseBase
from whet.kernels.rms_norm import rms_norm
from whet.kernels.vocabulary_head import LogitMap

from .packed import PackedTokens
from .program import PLAIN, DecoderProgram, Layer
from .projections import Projection

Pair = tuple[torch.Tensor, torch.Tensor | None]
LOGIT_ROWS = 256
"""Supervised rows whose logits exist at once."""


@dataclass(frozen=True)
class Comparison:
    """The numbers, on the rows that were compared.

    Args:
        layers: for each, the relative error (Frobenius norm) of what it adds to the 16-bit stream.
        hidden: relative error of the last hidden states, all layers' errors together.
        divergence: mean KL(16-bit || rounded) of the next-token distributions, nats.
        loss_16_bit: mean loss of the supervised tokens, nats.
        loss: the same as it will train.
        tokens: supervised tokens compared.
    """

    layers: list[float]
    hidden: float
    divergence: float
    loss_16_bit: float
    loss: float
    tokens: int


@torch.no_grad()
def compare_with_16_bit(
    program: DecoderProgram,
    weight_of: Callable[[torch.nn.Module], torch.Tensor],
    packed: PackedTokens,
    places_S: torch.Tensor,
    labels_S: torch.Tensor,
) -> Comparison:
    """Run both streams and compare them.

    Args:
        program: as it will train.
        weight_of: the checkpoint's weight (N, K) of one of the decoder's linear layers, on any device.
        packed: rows of the user's data, on the model's device.
        places_S: int64, places whose next token is supervised.
        labels_S: int64, those tokens; -100 is left out.
    """
    program.refresh()
    start: Pair = (program.embed(packed.input_ids_T), None)
    rounded, exact, errors = start, start, []
    for layer in program.layers:
        rounded, alone = _run(program, layer, rounded, packed), _run(program, layer, exact, packed)
        with _exact(layer, weight_of, program.dtype):
            after = _run(program, layer, exact, packed)
        errors.append(_relative(_sum(alone) - _sum(after), _sum(after) - _sum(exact)))
        exact = after
    counts = labels_S >= 0
    rounded_SD, exact_SD = (
        _normed(program, pair).index_select(0, places_S[counts]) for pair in (rounded, exact)
    )
    divergence, loss, loss_16_bit = _predictions(program, rounded_SD, exact_SD, labels_S[counts])
    return Comparison(
        layers=[float(error) for error in errors],
        hidden=float(_relative(rounded_SD.float() - exact_SD.float(), exact_SD.float())),
        divergence=divergence,
        loss_16_bit=loss_16_bit,
        loss=loss,
        tokens=int(counts.sum()),
    )


def _run(program: DecoderProgram, layer: Layer, stream: Pair, packed: PackedTokens) -> Pair:
    table = None if layer.rope is None else program.table(layer.rope, packed.longest)
    x_TD, delta_TD = layer.attention(*stream, packed, table, False)
    return layer.mlp(x_TD, delta_TD, False, program.chunk)


def fused_projections(layer: Layer) -> list[Projection]:
    """The projections of a layer whose products the kernels compute."""
    halves = [half for half in (layer.attention, layer.mlp) if not isinstance(half, PLAIN)]
    return [projection for half in halves for projection in half.projections()]


@contextmanager
def _exact(
    layer: Layer, weight_of: Callable[[torch.nn.Module], torch.Tensor], dtype: torch.dtype
) -> Iterator[None]:
    """The layer's fused products take the checkpoint's weights while the block runs."""
    projections = fused_projections(layer)
    before = [projection.stack.base for projection in projections]
    for projection in projections:
        stack = projection.stack
        weights = [weight_of(one).to(stack.a_RK.device, dtype) for one in projection.layers]
        dense = DenseBase(weights, stack.full_rank)
        dense.wide_NX[:, dense.inputs :] = stack.sb_NR
        stack.base = dense
    try:
        yield
    finally:
        for projection, base in zip(projections, before, strict=True):
            projection.stack.base = base


def _sum(stream: Pair) -> torch.Tensor:
    x_TD, delta_TD = stream
    return x_TD.float() if delta_TD is None else x_TD.float() + delta_TD.float()


def _relative(difference: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    return difference.norm() / whole.norm().clamp_min(1e-30)


def _normed(program: DecoderProgram, stream: Pair) -> torch.Tensor:
    norm, (x_TD, delta_TD) = program.norm, stream
    y_TD, _ = rms_norm(x_TD, norm.weight, norm.eps, offset=norm.offset, residual=delta_TD)
    result: torch.Tensor = y_TD
    return result


def _predictions(
    program: DecoderProgram, rounded_SD: torch.Tensor, exact_SD: torch.Tensor, labels_S: torch.Tensor
) -> tuple[float, float, float]:
    """Mean KL(exact || rounded), and the mean losses of both."""
    settings = program.settings
    logits = LogitMap(settings.final_softcap, settings.logit_scale)
    totals = torch.zeros(3, dtype=torch.float64, device=labels_S.device)
    for start in range(0, len(labels_S), LOGIT_ROWS):
        part = slice(start, start + LOGIT_ROWS)
        log_q, log_p = (
            logits.apply(program.head(hidden[part]).float())[0].log_softmax(-1)
            for hidden in (rounded_SD, exact_SD)
        )
        divergence = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        losses = [F.nll_loss(each, labels_S[part], reduction="sum") for each in (log_q, log_p)]
        totals += torch.stack([divergence, *losses]).double()
    divergence, loss, loss_16_bit = (totals / max(len(labels_S), 1)).tolist()
    return divergence, loss, loss_16_bit
