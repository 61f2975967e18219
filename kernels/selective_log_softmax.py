"""Log-probabilities of given tokens, for losses that weigh them: preference and reinforcement learning.

    log p(y) = z_y - lse        lse = log Σ exp(z)        d log p(y) / dz_v = [v = y] - p_v

with z the logits of :class:`whet.kernels.vocabulary_head.LogitMap`. What such a loss does with the
log-probabilities is known only after the forward pass. But a row's hidden state reaches no other row's: under
a frozen head the forward pass finishes each row's gradient, as that of :mod:`.linear_cross_entropy` with the
sign turned, and the backward pass multiplies it by what arrives for the row. Where the head trains, whose
gradient sums over rows, the backward pass makes the logits again, chunk by chunk, and overwrites them with
their gradient: four matrix products instead of three. Never are there full logits.

Legend: S rows, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
from torch.autograd.function import once_differentiable

from .backend import uses_triton
from .linear_cross_entropy import LossOptions, linear_cross_entropy_forward
from .rows import accumulation_type
from .softmax_triton import log_softmax_gradient_rows
from .spec import Compilation, KernelSpec, bytes_of
from .vocabulary_head import (
    HeadGradients,
    HeadWeight,
    LogitMap,
    Wanted,
    gradient_scale,
    in_type_of,
    logit_chunks,
    logits_tile,
    mean_weight,
    scaled,
)
from .vocabulary_head_cases import ROWS_SIGNATURE, head_case, head_flops, head_inputs


class LogProbabilities(NamedTuple):
    """Of every row: log p(label); entropy (nats) and whether the label is the likeliest, empty if not asked
    for; log Σ exp z; the gradient of -log p(label), None if not asked for."""

    logp_S: torch.Tensor
    entropy_S: torch.Tensor
    correct_S: torch.Tensor
    lse_S: torch.Tensor
    of_hidden_SD: torch.Tensor | None


class PredictedTokens(NamedTuple):
    """Of every row: log p(label), which has a gradient; entropy in nats; bool, the label is the likeliest."""

    logp_S: torch.Tensor
    entropy_S: torch.Tensor
    correct_S: torch.Tensor


def selective_log_softmax_forward(
    hidden_SD: torch.Tensor,
    weight_VD: torch.Tensor | HeadWeight,
    labels_S: torch.Tensor,
    bias_V: torch.Tensor | None = None,
    options: LossOptions | None = None,
    *,
    chunk: int | None = None,
    entropy: bool = False,
    gradient: bool = False,
) -> LogProbabilities:
    """Log-probabilities without autograd, 0 in ignored rows; of ``options``, map and ignore_index count.

    With ``gradient`` also that of each row's -log p by its own hidden state, in the hidden states' type.
    """
    options = options or LossOptions()
    found = linear_cross_entropy_forward(
        hidden_SD,
        weight_VD,
        labels_S,
        bias_V,
        LossOptions(options.map, ignore_index=options.ignore_index),
        wanted=Wanted(hidden=gradient, statistics=entropy),
        chunk=chunk,
    )
    return LogProbabilities(
        found.losses_S.neg_(),
        found.entropies_S,
        found.correct_S.bool(),
        found.lses_S,
        found.gradients.hidden_SD,
    )


def selective_log_softmax_backward(
    upstream_S: torch.Tensor,
    hidden_SD: torch.Tensor,
    weight_VD: torch.Tensor | HeadWeight,
    labels_S: torch.Tensor,
    lse_S: torch.Tensor,
    bias_V: torch.Tensor | None = None,
    options: LossOptions | None = None,
    *,
    wanted: Wanted,
    chunk: int | None = None,
) -> HeadGradients:
    """The ``wanted`` gradients, for the gradients ``upstream_S`` of the log-probabilities."""
    options = options or LossOptions()
    hidden_SD, weight_VD, bias_V = in_type_of(hidden_SD, weight_VD, bias_V)
    labels_S = labels_S.contiguous()
    upstream_S = upstream_S.where(labels_S != options.ignore_index, 0.0)
    # Whatever the loss divides by, logits' gradients in fp16 are those of factors up to one.
    normalised = hidden_SD.dtype == torch.float16 and upstream_S.numel() > 0
    unit = upstream_S.abs().amax().clamp(min=1e-30) if normalised else None
    shares_S = upstream_S if unit is None else upstream_S / unit
    gradients = HeadGradients.empty(hidden_SD, weight_VD, wanted)
    for part, logits_SV in logit_chunks(hidden_SD, weight_VD, bias_V, chunk):
        _gradient_rows(logits_SV, labels_S[part], lse_S[part], shares_S[part], options)
        gradients.add(part, logits_SV, hidden_SD, weight_VD)
    return gradients if unit is None else gradients.times(unit)


def _gradient_rows(
    logits_SV: torch.Tensor,
    labels_S: torch.Tensor,
    lse_S: torch.Tensor,
    upstream_S: torch.Tensor,
    options: LossOptions,
) -> None:
    """upstream · d log p(label) / d product in place of a chunk's products."""
    scale = gradient_scale(logits_SV.dtype)
    rows, vocabulary = logits_SV.shape
    if uses_triton(logits_SV) and logits_SV.dtype != torch.float64:
        tile = logits_tile(vocabulary, logits_SV.dtype)
        log_softmax_gradient_rows[(rows,)](
            logits_SV, logits_SV.stride(0), labels_S, lse_S, upstream_S,
            vocabulary, tile.width, options.ignore_index, options.map.inner, options.map.outer, scale,
            CAPPED=options.map.softcap is not None, BLOCK=tile.block, GROUP=tile.group, num_warps=tile.warps,
        )  # fmt: skip
        return
    z_SV, slope = options.map.apply(logits_SV.to(lse_S.dtype))
    counts_S = labels_S != options.ignore_index
    label_S1 = labels_S.long().where(counts_S, 0)[:, None]
    dz_SV = z_SV.sub_(lse_S[:, None]).exp_().neg_()
    dz_SV.scatter_add_(1, label_S1, torch.ones_like(label_S1, dtype=dz_SV.dtype))
    dz_SV.mul_(slope).mul_(upstream_S[:, None] * scale).masked_fill_(~counts_S[:, None], 0)
    logits_SV.copy_(dz_SV)


class _SelectiveLogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_SD: torch.Tensor,
        weight_VD: torch.Tensor | HeadWeight,
        bias_V: torch.Tensor | None,
        labels_S: torch.Tensor,
        options: LossOptions,
        chunk: int | None,
        entropy: bool,
        differentiated: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        of_hidden, *of_head = ctx.needs_input_grad[:3]
        finished = differentiated and of_hidden and not any(of_head)
        found = selective_log_softmax_forward(
            hidden_SD, weight_VD, labels_S, bias_V, options, chunk=chunk, entropy=entropy, gradient=finished
        )
        ctx.head, ctx.options, ctx.chunk = None, options, chunk
        if finished:
            ctx.save_for_backward(found.of_hidden_SD, labels_S)
        elif isinstance(weight_VD, torch.Tensor):
            ctx.save_for_backward(None, labels_S, hidden_SD, weight_VD, bias_V, found.lse_S)
        else:
            ctx.save_for_backward(None, labels_S, hidden_SD, None, bias_V, found.lse_S)
            ctx.head = weight_VD
        ctx.mark_non_differentiable(found.entropy_S, found.correct_S)
        return found.logp_S, found.entropy_S, found.correct_S

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logp_S: torch.Tensor, *_: torch.Tensor) -> tuple[Any, ...]:
        of_hidden_SD, labels_S, *others = ctx.saved_tensors
        if of_hidden_SD is not None:
            counts_S = labels_S != ctx.options.ignore_index
            return scaled(of_hidden_SD, -of_logp_S.where(counts_S, 0.0)), *(None,) * 7
        hidden_SD, weight_VD, bias_V, lse_S = others
        gradients = selective_log_softmax_backward(
            of_logp_S,
            hidden_SD,
            ctx.head if weight_VD is None else weight_VD,
            labels_S,
            lse_S,
            bias_V,
            ctx.options,
            wanted=Wanted(*ctx.needs_input_grad[:3]),
            chunk=ctx.chunk,
        )
        return (*gradients.as_parameters(weight_VD, bias_V), *(None,) * 5)


@overload
def selective_log_softmax(
    hidden_SD: torch.Tensor,
    weight_VD: torch.Tensor | HeadWeight,
    labels_S: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    ignore_index: int = -100,
    chunk: int | None = None,
    entropy: Literal[False] = False,
) -> torch.Tensor: ...
@overload
def selective_log_softmax(
    hidden_SD: torch.Tensor,
    weight_VD: torch.Tensor | HeadWeight,
    labels_S: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    ignore_index: int = -100,
    chunk: int | None = None,
    entropy: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...
def selective_log_softmax(
    hidden_SD: torch.Tensor,
    weight_VD: torch.Tensor | HeadWeight,
    labels_S: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    ignore_index: int = -100,
    chunk: int | None = None,
    entropy: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """log p(label) of every row, fp32 (S,), differentiable in hidden, weight and bias; 0 where ignored.

    With ``entropy`` also each prediction's entropy in nats, fp32 (S,), without a gradient. ``temperature``
    divides the logits after scale and cap; the other arguments are :func:`linear_cross_entropy`'s.

    Raises:
        ValueError: for options out of range.
    """
    options = LossOptions(LogitMap(softcap, logit_scale, temperature), ignore_index=ignore_index)
    logp_S, entropy_S, _ = _SelectiveLogSoftmax.apply(
        hidden_SD, weight_VD, bias_V, labels_S, options, chunk, entropy, torch.is_grad_enabled()
    )
    return (logp_S, entropy_S) if entropy else logp_S


def predicted_tokens(
    hidden_SD: torch.Tensor,
    weight_VD: torch.Tensor | HeadWeight,
    labels_S: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> PredictedTokens:
    """:func:`selective_log_softmax` with all that the same pass finds; arguments as there."""
    options = LossOptions(LogitMap(softcap, logit_scale, temperature))
    return PredictedTokens(
        *_SelectiveLogSoftmax.apply(
            hidden_SD, weight_VD, bias_V, labels_S, options, chunk, True, torch.is_grad_enabled()
        )
    )


@torch.no_grad()
def mean_logits(
    hidden_SD: torch.Tensor,
    weight_VD: torch.Tensor | HeadWeight,
    bias_V: torch.Tensor | None = None,
    map: LogitMap | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    """The mean over the vocabulary of each row's logits, fp32 (S,), without a gradient.

    Without a cap it is the product with the mean of the head's rows; a cap takes the logits, chunk by chunk.
    """
    map = map or LogitMap()
    hidden_SD, weight_VD, bias_V = in_type_of(hidden_SD, weight_VD, bias_V)
    wide = accumulation_type(hidden_SD.dtype)
    if map.softcap is None:
        mean_S = hidden_SD.to(wide) @ mean_weight(weight_VD, hidden_SD.dtype)
        return map.inner * (mean_S if bias_V is None else mean_S + bias_V.mean(dtype=wide))
    mean_S = torch.empty(hidden_SD.shape[0], dtype=wide, device=hidden_SD.device)
    for part, logits_SV in logit_chunks(hidden_SD, weight_VD, bias_V, chunk):
        mean_S[part] = map.apply(logits_SV.to(wide))[0].mean(1)
    return mean_S


def reference(
    hidden_SD: torch.Tensor,
    weight_VD: torch.Tensor,
    labels_S: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    ignore_index: int = -100,
    chunk: int | None = None,
    entropy: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The same from full logits."""
    logits_SV = torch.nn.functional.linear(hidden_SD, weight_VD, bias_V)
    logits_SV = logits_SV.to(accumulation_type(logits_SV.dtype)) * logit_scale
    if softcap is not None:
        logits_SV = softcap * torch.tanh(logits_SV / softcap)
    logps_SV = (logits_SV / temperature).log_softmax(1)
    counts_S = labels_S != ignore_index
    logp_S = logps_SV.gather(1, labels_S.long().where(counts_S, 0)[:, None])[:, 0] * counts_S
    if not entropy:
        return logp_S
    return logp_S, (-(logps_SV.exp() * logps_SV).sum(1) * counts_S).detach()


SPEC = KernelSpec(
    name="selective_log_softmax",
    operation=selective_log_softmax,
    reference=reference,
    inputs=head_inputs,
    cases=(
        head_case("even", 16, 32, 512),
        head_case("odd", 7, 24, 1003, chunk=3, temperature=0.7),
        head_case("one_row", 1, 16, 17),
        head_case("empty", 0, 16, 40),
        head_case("all_options", 9, 32, 9001, softcap=3.0, logit_scale=0.7, temperature=1.3, bias=True,
                  ignored="some", chunk=4, entropy=True),
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
            log_softmax_gradient_rows,
            {**ROWS_SIGNATURE, **dict.fromkeys(("lses", "upstream"), "*fp32")},
            {"CAPPED": capped, "BLOCK": 8192, "GROUP": 8},
            num_warps=16,
        )
        for capped in (False, True)
    ),
    notes="The forward pass is linear_cross_entropy's.",
)  # fmt: skip
