"""The attention half of a decoder layer as one autograd node: norm, projections, rotary, attention, output.

What it keeps for the backward pass is the planner's choice; the rest is computed again. Legend: T tokens,
D width, H query heads, G key/value heads, C = H + 2G, E head size, R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from whet.kernels.attention import attention_backward, attention_forward
from whet.kernels.lora_linear import (
    Factor,
    as_types_of,
    draw_seeds,
    lora_linear_factor_gradients,
    lora_linear_forward,
    lora_linear_input_gradient,
    with_room,
)
from whet.kernels.rms_norm import rms_norm_backward, rms_norm_forward
from whet.kernels.rope import rope_backward, rope_forward

from .norms import Norm, finish, unfinish
from .packed import PackedTokens
from .projections import Projection


@dataclass(frozen=True)
class RotaryTable:
    """cos and sin in fp32, (positions, rotated width)."""

    cos_PW: torch.Tensor
    sin_PW: torch.Tensor


@dataclass(frozen=True)
class AttentionShape:
    """The numbers of one layer's attention.

    Args:
        scale: of the scores; usually E ** -0.5.
        window: keys a query sees at most, itself included; None is all before it.
        softcap: scores become softcap * tanh(score / softcap).
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None


@dataclass
class AttentionHalf:
    """Modules and numbers of the half; :meth:`__call__` runs it.

    Args:
        norm: before the projections.
        qkv: q, k and v as one projection.
        out: back to the model's width.
        q_norm: on each query head, with ``k_norm`` on each key head (Qwen3, Gemma 3).
        post_norm: on the half's result (Gemma 2 and 3).
        multiplier: of the half's result (Granite).
    """

    norm: Norm
    qkv: Projection
    out: Projection
    shape: AttentionShape
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    post_norm: Norm | None = None
    multiplier: float = 1.0

    def __call__(
        self,
        x_TD: torch.Tensor,
        delta_TD: torch.Tensor | None,
        packed: PackedTokens,
        table: RotaryTable | None,
        keep: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x + delta, this half's own addition). See :class:`_AttentionNode`."""
        parameters = [*self.qkv.parameters(), *self.out.parameters()]
        result: tuple[torch.Tensor, torch.Tensor] = _AttentionNode.apply(
            self, packed, table, keep, x_TD, delta_TD, *parameters
        )
        return result

    def split(self, parameters: Sequence[Any]) -> tuple[list[Factor | None], list[Factor | None]]:
        """Factors of the input and of the output projection."""
        middle = 2 * len(self.qkv.modules)
        return self.qkv.factors(parameters[:middle]), self.out.factors(parameters[middle:])

    def rotated(self, qkv_TCE: torch.Tensor, packed: PackedTokens, table: RotaryTable | None) -> torch.Tensor:
        """Normalised and rotated heads; in place unless the norm's backward pass needs its input."""
        if table is None:
            return qkv_TCE
        return rope_forward(
            qkv_TCE,
            table.cos_PW,
            table.sin_PW,
            packed.positions_T,
            self.shape.heads,
            self.shape.kv_heads,
            out_TCE=None if self.q_norm else qkv_TCE,
            **self.head_norms(),
        )

    def head_norms(self) -> dict[str, Any]:
        """Arguments of the rotary kernels for the norm of the heads."""
        if self.q_norm is None or self.k_norm is None:
            return {}
        weights = {"q_weight": self.q_norm.weight, "k_weight": self.k_norm.weight}
        return {**weights, "eps": self.q_norm.eps, "offset": self.q_norm.offset}

    def heads(self, qkv_TCE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views q (T, H, E), k and v (T, G, E)."""
        h, g = self.shape.heads, self.shape.kv_heads
        return qkv_TCE[:, :h], qkv_TCE[:, h : h + g], qkv_TCE[:, h + g :]

    def attention_options(self) -> dict[str, Any]:
        shape = self.shape
        return {"causal": True, "window": shape.window, "softcap": shape.softcap, "scale": shape.scale}


@dataclass
class _Kept:
    """What the forward pass computed on the way; any of it may be dropped and computed again."""

    qkv_TCE: torch.Tensor
    """Before rotation where heads are normalised, else after."""
    t_qkv_TR: torch.Tensor
    o_TX: torch.Tensor
    """Attention's output in the first H x E columns, room for the next product's t behind."""
    lse_HT: torch.Tensor
    extra: tuple[Any, ...]


def _attend(
    half: AttentionHalf,
    summed_TD: torch.Tensor,
    packed: PackedTokens,
    table: RotaryTable | None,
    factors: Sequence[Factor | None],
    out_factors: Sequence[Factor | None],
    seeds: Sequence[int],
    y_wide_TX: torch.Tensor,
) -> _Kept:
    """From the normalised input to attention's output."""
    tokens, shape = len(summed_TD), half.shape
    y_qkv_TN, t_qkv_TR = lora_linear_forward(
        y_wide_TX, half.qkv.base, half.qkv.outputs, factors, bias_N=half.qkv.bias(), seeds=seeds
    )
    qkv_TCE = y_qkv_TN.view(tokens, shape.heads + 2 * shape.kv_heads, shape.head_dim)
    width = shape.heads * shape.head_dim
    o_TX = with_room(summed_TD, width, out_factors)
    q, k, v = half.heads(half.rotated(qkv_TCE, packed, table))
    _, lse_HT, extra = attention_forward(
        q,
        k,
        v,
        packed.offsets,
        packed.longest,
        documents=packed.documents,
        out_THE=o_TX[:, :width].unflatten(1, (shape.heads, shape.head_dim)),
        **half.attention_options(),
    )
    return _Kept(qkv_TCE, t_qkv_TR, o_TX, lse_HT, extra)


class _AttentionNode(torch.autograd.Function):
    """(x, delta) -> (x + delta, attention(norm(x + delta)))."""

    @staticmethod
    def forward(
        ctx: Any,
        half: AttentionHalf,
        packed: PackedTokens,
        table: RotaryTable | None,
        keep: bool,
        x_TD: torch.Tensor,
        delta_TD: torch.Tensor | None,
        *parameters: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        qkv_factors, out_factors = half.split(parameters)
        seeds = draw_seeds(qkv_factors), draw_seeds(out_factors)
        y_wide_TX = with_room(x_TD, x_TD.shape[1], qkv_factors)
        _, summed_TD, rstd_T = rms_norm_forward(
            x_TD,
            half.norm.weight,
            half.norm.eps,
            offset=half.norm.offset,
            residual_TD=delta_TD,
            out_TD=y_wide_TX[:, : x_TD.shape[1]],
        )
        summed_TD = x_TD.view_as(x_TD) if summed_TD is None else summed_TD
        kept = _attend(half, summed_TD, packed, table, qkv_factors, out_factors, seeds[0], y_wide_TX)
        del y_wide_TX
        result_TD, t_out_TR = lora_linear_forward(
            kept.o_TX, half.out.base, half.out.outputs, out_factors, bias_N=half.out.bias(), seeds=seeds[1]
        )
        plain_TD = result_TD if half.post_norm else None
        delta_out_TD = finish(result_TD, half.post_norm, half.multiplier)
        ctx.half, ctx.packed, ctx.table, ctx.seeds, ctx.count = half, packed, table, seeds, len(parameters)
        ctx.rstd_T, ctx.t_out_TR = rstd_T, t_out_TR
        ctx.kept = kept if keep else None
        ctx.plain_TD = plain_TD if keep else None
        ctx.save_for_backward(summed_TD, *parameters)
        return summed_TD, delta_out_TD

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        half, packed, table = ctx.half, ctx.packed, ctx.table
        d_sum_TD, d_delta_TD = gradients
        summed_TD, *parameters = ctx.saved_tensors
        qkv_factors, out_factors = half.split(parameters)
        kept, shape, rstd_T = ctx.kept, half.shape, ctx.rstd_T
        needs_input = ctx.needs_input_grad[4] or ctx.needs_input_grad[5]
        y_wide_TX = with_room(summed_TD, summed_TD.shape[1], qkv_factors)
        y_TD = y_wide_TX[:, : summed_TD.shape[1]]
        norm = half.norm
        rms_norm_forward(summed_TD, norm.weight, norm.eps, offset=norm.offset, out_TD=y_TD)
        if kept is None:
            kept = _attend(half, summed_TD, packed, table, qkv_factors, out_factors, ctx.seeds[0], y_wide_TX)
        ctx.kept = None
        width = shape.heads * shape.head_dim
        o_TX = kept.o_TX
        if half.post_norm:
            plain_TD = ctx.plain_TD
            if plain_TD is None:
                plain_TD, _ = lora_linear_forward(
                    o_TX,
                    half.out.base,
                    half.out.outputs,
                    out_factors,
                    bias_N=half.out.bias(),
                    seeds=ctx.seeds[1],
                )
            d_delta_TD = unfinish(d_delta_TD, plain_TD, half.post_norm, half.multiplier)
        elif half.multiplier != 1.0:
            d_delta_TD = d_delta_TD * half.multiplier
        do_TN, dt_TR = lora_linear_input_gradient(
            d_delta_TD, half.out.base, half.out.outputs, out_factors, seeds=ctx.seeds[1]
        )
        out_gradients = lora_linear_factor_gradients(
            d_delta_TD,
            dt_TR,
            o_TX[:, :width],
            ctx.t_out_TR,
            half.out.outputs,
            out_factors,
            seeds=ctx.seeds[1],
        )
        heads = half.rotated(kept.qkv_TCE, packed, table) if half.q_norm else kept.qkv_TCE
        q, k, v = half.heads(heads)
        d_qkv_TCE = torch.empty_like(kept.qkv_TCE)
        dq, dk, dv = half.heads(d_qkv_TCE)
        as_heads = (shape.heads, shape.head_dim)
        attention_backward(
            do_TN.unflatten(1, as_heads),
            q,
            k,
            v,
            o_TX[:, :width].unflatten(1, as_heads),
            kept.lse_HT,
            kept.extra,
            packed.offsets,
            packed.longest,
            documents=packed.documents,
            dq=dq,
            dk=dk,
            dv=dv,
            **half.attention_options(),
        )
        if table is not None:
            rope_backward(
                d_qkv_TCE,
                kept.qkv_TCE if half.q_norm else None,
                table.cos_PW,
                table.sin_PW,
                packed.positions_T,
                shape.heads,
                shape.kv_heads,
                **half.head_norms(),
            )
        d_qkv_TN, t_qkv_TR = d_qkv_TCE.flatten(1), kept.t_qkv_TR
        del kept, heads, q, k, v
        dy_TD, dt_TR = lora_linear_input_gradient(
            d_qkv_TN, half.qkv.base, half.qkv.outputs, qkv_factors, needed=needs_input, seeds=ctx.seeds[0]
        )
        qkv_gradients = lora_linear_factor_gradients(
            d_qkv_TN, dt_TR, y_TD, t_qkv_TR, half.qkv.outputs, qkv_factors, seeds=ctx.seeds[0]
        )
        dx_TD = None
        if dy_TD is not None:
            dx_TD, _ = rms_norm_backward(
                dy_TD, summed_TD, norm.weight, rstd_T, offset=norm.offset, residual_gradient_TD=d_sum_TD
            )
        d_delta_in = dx_TD if ctx.needs_input_grad[5] else None
        found = as_types_of([*qkv_gradients, *out_gradients], parameters)
        return None, None, None, None, dx_TD, d_delta_in, *found
