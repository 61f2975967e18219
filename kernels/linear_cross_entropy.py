"""Head and cross-entropy in one: the loss of supervised rows without their full logits.

With z the logits of a row (see :class:`whet.kernels.vocabulary_head.LogitMap`), y its label, ε the label
smoothing, ζ the z-loss factor (Chowdhery et al., 2022, arXiv:2204.02311, section 5) and p = softmax(z):

    loss  = lse - (1 - ε) z_y - ε mean(z) + ζ lse²          lse = log Σ exp(z)
    dz_v  = (1 + 2ζ lse) p_v - (1 - ε) [v = y] - ε / V

Rows are taken in chunks: one matrix product makes the chunk's logits, one kernel reads the losses off them
and overwrites them with dz, a second matrix product takes dz back to the hidden states. The gradient is thus
finished in the forward pass, for a loss whose own gradient is 1; the backward pass multiplies by what
arrives. Logits are rounded to the hidden states' type, as a plain head rounds them; losses are in fp32.

Legend: S supervised rows, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .backend import uses_triton
from .rows import accumulation_type
from .softmax_triton import cross_entropy_rows
from .spec import Compilation, KernelSpec, bytes_of
from .vocabulary_head import (
    PLAIN,
    HeadGradients,
    HeadWeight,
    LogitMap,
    Wanted,
    gradient_scale,
    in_type_of,
    logit_chunks,
    logits_tile,
    scaled,
)
from .vocabulary_head_cases import LOSS_SIGNATURE, head_case, head_flops, head_inputs


@dataclass(frozen=True)
class LossOptions:
    """What the loss is beyond the labels' negative log-likelihood."""

    map: LogitMap = PLAIN
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    ignore_index: int = -100

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing must lie in [0, 1], not {self.label_smoothing}")


class Statistics(NamedTuple):
    """Sums over the supervised rows, 0-d tensors on the device.

    ``correct`` (int64) counts rows whose label is the first of the greatest logits; ``entropy`` (fp32, nats)
    sums the entropies of the predictions.
    """

    correct: torch.Tensor
    entropy: torch.Tensor


class HeadLoss(NamedTuple):
    """Of every row: loss, log Σ exp z, and if asked for entropy and whether the label is the best token.

    ``gradients`` are those of the sum of the losses.
    """

    losses_S: torch.Tensor
    lses_S: torch.Tensor
    entropies_S: torch.Tensor
    correct_S: torch.Tensor
    gradients: HeadGradients

    def rows(self, part: slice) -> HeadLoss:
        """Views of some rows."""
        return HeadLoss(
            self.losses_S[part],
            self.lses_S[part],
            self.entropies_S[part],
            self.correct_S[part],
            self.gradients,
        )


def _loss_rows_plain(
    logits_SV: torch.Tensor, labels_S: torch.Tensor, options: LossOptions, gradient: bool, found: HeadLoss
) -> None:
    """What the Triton kernel does to a chunk, in plain torch."""
    products_SV = logits_SV.to(accumulation_type(logits_SV.dtype))
    z_SV, slope = options.map.apply(products_SV)
    counts_S = labels_S != options.ignore_index
    label_S1 = labels_S.long().where(counts_S, 0)[:, None]
    smoothing, vocabulary = options.label_smoothing, z_SV.shape[1]
    top_S1, target_S1 = z_SV.amax(1, keepdim=True), z_SV.gather(1, label_S1)
    exponential_SV = (z_SV - top_S1).exp_()
    mass_S1 = exponential_SV.sum(1, keepdim=True)
    lse_S1 = top_S1 + mass_S1.log()
    losses_S1 = mass_S1.log() + (top_S1 - target_S1) + options.z_loss * lse_S1**2
    if smoothing:
        losses_S1 += smoothing * (target_S1 - z_SV.mean(1, keepdim=True))
    found.losses_S.copy_(losses_S1[:, 0].where(counts_S, 0))
    found.lses_S.copy_(lse_S1[:, 0].where(counts_S, 0))
    if found.correct_S.numel():
        found.correct_S.copy_((z_SV.argmax(1) == label_S1[:, 0]) & counts_S)
        expected_S1 = (exponential_SV * z_SV).sum(1, keepdim=True) / mass_S1
        found.entropies_S.copy_((lse_S1 - expected_S1)[:, 0].where(counts_S, 0))
    if gradient:
        dz_SV = exponential_SV.mul_((1 + 2 * options.z_loss * lse_S1) / mass_S1).sub_(smoothing / vocabulary)
        dz_SV.scatter_add_(1, label_S1, torch.full_like(lse_S1, smoothing - 1))
        dz_SV.mul_(slope).mul_(gradient_scale(logits_SV.dtype)).masked_fill_(~counts_S[:, None], 0)
        logits_SV.copy_(dz_SV)


def _loss_rows(
    logits_SV: torch.Tensor, labels_S: torch.Tensor, options: LossOptions, gradient: bool, found: HeadLoss
) -> None:
    """Losses and statistics of a chunk into ``found``; with ``gradient``, dz in place of the logits."""
    if not uses_triton(logits_SV) or logits_SV.dtype == torch.float64:
        _loss_rows_plain(logits_SV, labels_S, options, gradient, found)
        return
    rows, vocabulary = logits_SV.shape
    tile = logits_tile(vocabulary, logits_SV.dtype)
    cross_entropy_rows[(rows,)](
        logits_SV, logits_SV.stride(0), labels_S,
        found.losses_S, found.lses_S, found.entropies_S, found.correct_S,
        vocabulary, tile.width, options.ignore_index, options.map.inner, options.map.outer,
        options.label_smoothing, options.z_loss, gradient_scale(logits_SV.dtype),
        CAPPED=options.map.softcap is not None, SMOOTHED=options.label_smoothing > 0,
        STATISTICS=found.correct_S.numel() > 0, GRADIENT=gradient,
        BLOCK=tile.block, GROUP=tile.group, num_warps=tile.warps,
    )  # fmt: skip


def _room(hidden_SD: torch.Tensor, weight_VD: torch.Tensor | HeadWeight, wanted: Wanted) -> HeadLoss:
    """Uninitialised results; empty ones for what nobody wants."""
    rows, device = hidden_SD.shape[0], hidden_SD.device
    wide = accumulation_type(hidden_SD.dtype)
    counted = rows if wanted.statistics else 0
    return HeadLoss(
        torch.empty(rows, dtype=wide, device=device),
        torch.empty(rows, dtype=wide, device=device),
        torch.empty(counted, dtype=wide, device=device),
        torch.empty(counted, dtype=torch.int32, device=device),
        HeadGradients.empty(hidden_SD, weight_VD, wanted),
    )


def linear_cross_entropy_forward(
    hidden_SD: torch.Tensor,
    weight_VD: torch.Tensor | HeadWeight,
    labels_S: torch.Tensor,
    bias_V: torch.Tensor | None = None,
    options: LossOptions | None = None,
    *,
    wanted: Wanted | None = None,
    chunk: int | None = None,
) -> HeadLoss:
    """Losses of every row (0 where ignored) and the gradients of their sum that are ``wanted``.

    Without a wanted gradient the logits are only read. Other arguments as for :func:`linear_cross_entropy`.
    """
    options, wanted = options or LossOptions(), wanted or Wanted()
    hidden_SD, weight_VD, bias_V = in_type_of(hidden_SD, weight_VD, bias_V)
    labels_S = labels_S.contiguous()
    found = _room(hidden_SD, weight_VD, wanted)
    for part, logits_SV in logit_chunks(hidden_SD, weight_VD, bias_V, chunk):
        _loss_rows(logits_SV, labels_S[part], options, wanted.gradient, found.rows(part))
        found.gradients.add(part, logits_SV, hidden_SD, weight_VD)
    return found


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_SD: torch.Tensor,
        weight_VD: torch.Tensor | HeadWeight,
        bias_V: torch.Tensor | None,
        labels_S: torch.Tensor,
        options: LossOptions,
        chunk: int | None,
        statistics: bool,
    ) -> tuple[torch.Tensor, Statistics | None]:
        hidden, weight, bias = ctx.needs_input_grad[:3]
        wanted = Wanted(hidden, weight, bias, statistics)
        found = linear_cross_entropy_forward(
            hidden_SD, weight_VD, labels_S, bias_V, options, wanted=wanted, chunk=chunk
        )
        # In the parameters' own types: an fp32 sum over a whole head should not outlive this pass.
        ctx.save_for_backward(*found.gradients.as_parameters(weight_VD, bias_V))
        return found.losses_S.sum(), _statistics(found) if statistics else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: torch.Tensor, _: None) -> tuple[Any, ...]:
        gradients = (None if each is None else scaled(each, of_loss) for each in ctx.saved_tensors)
        return (*gradients, None, None, None, None)


def _statistics(found: HeadLoss) -> Statistics:
    return Statistics(found.correct_S.sum(dtype=torch.int64), found.entropies_S.sum())


@overload
def linear_cross_entropy(
    hidden_SD: torch.Tensor,
    weight_VD: torch.Tensor | HeadWeight,
    labels_S: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    chunk: int | None = None,
    statistics: Literal[False] = False,
) -> torch.Tensor: ...
@overload
def linear_cross_entropy(
    hidden_SD: torch.Tensor,
    weight_VD: torch.Tensor | HeadWeight,
    labels_S: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    chunk: int | None = None,
    statistics: Literal[True],
) -> tuple[torch.Tensor, Statistics]: ...
def linear_cross_entropy(
    hidden_SD: torch.Tensor,
    weight_VD: torch.Tensor | HeadWeight,
    labels_S: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    chunk: int | None = None,
    statistics: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, Statistics]:
    """The sum of the rows' losses, fp32 (float64 for float64), 0-d; differentiable in hidden, weight, bias.

    Args:
        hidden_SD: hidden states of the supervised rows, gathered before; their type is the matrix products'.
        weight_VD: the head, in the same type (another type costs a copy), or a quantised :class:`HeadWeight`,
            which is frozen.
        labels_S: int32 or int64, in [0, V) or ``ignore_index``; others make the loss NaN on a GPU and raise
            ``RuntimeError`` on the CPU.
        bias_V: the head's bias.
        softcap: Gemma 2's cap of the logits.
        logit_scale: factor of the logits, before the cap.
        label_smoothing: ε, as ``torch.nn.functional.cross_entropy`` has it.
        z_loss: ζ, factor of the squared log-normaliser.
        ignore_index: label of rows that count nothing.
        chunk: rows whose logits exist at once; None for about 512 MiB of logits.
        statistics: also return what the metrics of a run need, found in the same pass.

    Raises:
        ValueError: for options out of range.
    """
    options = LossOptions(LogitMap(softcap, logit_scale), label_smoothing, z_loss, ignore_index)
    inputs = [each for each in (hidden_SD, weight_VD, bias_V) if isinstance(each, torch.Tensor)]
    if torch.is_grad_enabled() and any(each.requires_grad for each in inputs):
        loss, counted = _LinearCrossEntropy.apply(
            hidden_SD, weight_VD, bias_V, labels_S, options, chunk, statistics
        )
    else:
        wanted = Wanted(statistics=statistics)
        found = linear_cross_entropy_forward(
            hidden_SD, weight_VD, labels_S, bias_V, options, wanted=wanted, chunk=chunk
        )
        loss, counted = found.losses_S.sum(), _statistics(found) if statistics else None
    return (loss, counted) if statistics else loss


def reference(
    hidden_SD: torch.Tensor,
    weight_VD: torch.Tensor,
    labels_S: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    chunk: int | None = None,
) -> torch.Tensor:
    """The same sum from full logits, by :func:`torch.nn.functional.cross_entropy`."""
    logits_SV = F.linear(hidden_SD, weight_VD, bias_V)
    logits_SV = logits_SV.to(accumulation_type(logits_SV.dtype)) * logit_scale
    if softcap is not None:
        logits_SV = softcap * torch.tanh(logits_SV / softcap)
    loss = F.cross_entropy(
        logits_SV,
        labels_S.long(),
        reduction="sum",
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
    )
    counts_S = labels_S != ignore_index
    return loss + z_loss * (logits_SV.logsumexp(1) ** 2 * counts_S).sum()


SPEC = KernelSpec(
    name="linear_cross_entropy",
    operation=linear_cross_entropy,
    reference=reference,
    inputs=head_inputs,
    cases=(
        head_case("even", 16, 32, 512),
        head_case("odd", 7, 24, 1003, chunk=3),
        head_case("one_row", 1, 16, 17),
        head_case("empty", 0, 16, 40),
        head_case("ignored", 9, 16, 130, ignored="some", chunk=4),
        head_case("all_ignored", 5, 16, 130, ignored="all"),
        head_case("softcap", 6, 32, 771, softcap=2.0, logit_scale=1.5),
        head_case("all_options", 9, 32, 9001, softcap=3.0, logit_scale=0.7, label_smoothing=0.1, z_loss=1e-2,
              bias=True, ignored="some", chunk=4),
    ),
    timed=(
        head_case("8b", 8192, 4096, 128256),
        head_case("0.6b", 8192, 1024, 151936),
    ),
    tolerance={torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3},
    traffic=lambda inputs: bytes_of(inputs["hidden_SD"], inputs["weight_VD"], inputs["labels_S"]),
    flops=head_flops,
    differentiable=("hidden_SD", "weight_VD", "bias_V"),
    frozen=("weight_VD", "bias_V"),
    compilations=tuple(
        Compilation(
            cross_entropy_rows,
            LOSS_SIGNATURE,
            {
                **dict.fromkeys(("CAPPED", "SMOOTHED", "STATISTICS"), every),
                **{"GRADIENT": gradient, "BLOCK": 8192, "GROUP": 8},
            },
            num_warps=16,
        )
        for every, gradient in ((False, True), (True, True), (False, False))
    ),
    notes="Gradients of hidden states and weight are made in the forward pass.",
)  # fmt: skip
