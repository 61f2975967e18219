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
from whet.kernels.lora_base import Quantized
from whet.kernels.lora_linear import (
    as_types_of,
    lora_linear_factor_gradients,
    lora_linear_forward,
    lora_linear_input_gradient,
)
from whet.kernels.rms_norm import rms_norm_backward
from whet.kernels.rope import rope_backward, rope_forward

from .norms import Norm, finish, normed, unfinish
from .offload import Offloader
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

    @property
    def drops(self) -> bool:
        """Whether an adapter in force has dropout."""
        return self.qkv.stack.drops or self.out.stack.drops

    def projections(self) -> tuple[Projection, Projection]:
        """Both, whose factors have to be fresh."""
        return self.qkv, self.out

    def __call__(
        self,
        x_TD: torch.Tensor,
        delta_TD: torch.Tensor | None,
        packed: PackedTokens,
        table: RotaryTable | None,
        keep: bool,
        offloader: Offloader | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x + delta, this half's own addition). See :class:`_AttentionNode`."""
        parameters = [*self.qkv.parameters(), *self.out.parameters()]
        result: tuple[torch.Tensor, torch.Tensor] = _AttentionNode.apply(
            self, packed, table, keep, offloader, x_TD, delta_TD, *parameters
        )
        return result

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
    t_qkv_TR: torch.Tensor | None
    o_THE: torch.Tensor
    lse_HT: torch.Tensor
    extra: tuple[Any, ...]


class _Pass:
    """One forward or backward pass over a half, and the steps both share."""

    def __init__(
        self, half: AttentionHalf, packed: PackedTokens, table: RotaryTable | None, seeds: Any = None
    ):
        self.half, self.packed, self.table = half, packed, table
        self.qkv, self.out = half.qkv.stack, half.out.stack
        self.seeds = seeds or (self.qkv.draw_seeds(), self.out.draw_seeds())

    def normed(
        self, x_TD: torch.Tensor, delta_TD: torch.Tensor | None = None, *, multiply: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, Quantized | None]:
        """norm(x + delta) with room behind, x + delta, rstd; for a product (``multiply``) the FP8 rows."""
        y_TX = self.qkv.with_room(len(x_TD))
        quantize = multiply and self.qkv.base.quantizes
        out_TD = y_TX[:, : x_TD.shape[1]]
        return y_TX, *normed(self.half.norm, x_TD, out_TD, delta_TD=delta_TD, quantize=quantize)

    def project(
        self, y_TX: torch.Tensor, quantized: Quantized | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Heads as the projection gives them (T, C, E), and t of the product."""
        shape, bias_N = self.half.shape, self.half.qkv.bias()
        qkv_TN, t_qkv_TR = lora_linear_forward(
            y_TX, self.qkv, bias_N=bias_N, seeds=self.seeds[0], quantized=quantized
        )
        return qkv_TN.unflatten(1, (shape.heads + 2 * shape.kv_heads, shape.head_dim)), t_qkv_TR

    def attend(self, y_TX: torch.Tensor, quantized: Quantized | None) -> _Kept:
        """From the normalised input to attention's output."""
        half, packed = self.half, self.packed
        qkv_TCE, t_qkv_TR = self.project(y_TX, quantized)
        o_THE, lse_HT, extra = attention_forward(
            *half.heads(half.rotated(qkv_TCE, packed, self.table)),
            packed.offsets,
            packed.longest,
            documents=packed.documents,
            **half.attention_options(),
        )
        return _Kept(qkv_TCE, t_qkv_TR, o_THE, lse_HT, extra)

    def attend_again(
        self, y_TX: torch.Tensor, quantized: Quantized | None, results: Sequence[Any], extra: tuple[Any, ...]
    ) -> _Kept:
        """As :meth:`attend`, with attention's own results, output and log-sum-exp, at hand."""
        qkv_TCE, t_qkv_TR = self.project(y_TX, quantized)
        if not self.half.q_norm:
            self.half.rotated(qkv_TCE, self.packed, self.table)
        o_THE, lse_HT = results
        return _Kept(qkv_TCE, t_qkv_TR, o_THE, lse_HT, extra)

    def result(self, o_THE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The half's plain result and t of the product."""
        bias_N = self.half.out.bias()
        return lora_linear_forward(o_THE.flatten(1), self.out, bias_N=bias_N, seeds=self.seeds[1])

    def out_backward(
        self, kept: _Kept, d_result_TD: torch.Tensor, t_TR: torch.Tensor | None, plain_TD: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        """Gradient of attention's output (T, H, E), and of the output projection's factors."""
        half = self.half
        if half.post_norm:
            plain_TD = self.result(kept.o_THE)[0] if plain_TD is None else plain_TD
            d_result_TD = unfinish(d_result_TD, plain_TD, half.post_norm, half.multiplier)
        elif half.multiplier != 1.0:
            d_result_TD = d_result_TD * half.multiplier
        seeds, o_TK = self.seeds[1], kept.o_THE.flatten(1)
        do_TK, dt_TR = lora_linear_input_gradient(d_result_TD, self.out, packed=True, seeds=seeds)
        assert do_TK is not None
        found = lora_linear_factor_gradients(d_result_TD, dt_TR, o_TK, t_TR, self.out, seeds=seeds)
        return do_TK.unflatten(1, (half.shape.heads, half.shape.head_dim)), found

    def attend_backward(self, kept: _Kept, do_THE: torch.Tensor) -> torch.Tensor:
        """Gradient of the input projection's output (T, C x E)."""
        half, packed, table = self.half, self.packed, self.table
        heads = half.rotated(kept.qkv_TCE, packed, table) if half.q_norm else kept.qkv_TCE
        d_qkv_TCE = torch.empty_like(kept.qkv_TCE)
        dq, dk, dv = half.heads(d_qkv_TCE)
        gradients = attention_backward(
            do_THE,
            *half.heads(heads),
            kept.o_THE,
            kept.lse_HT,
            kept.extra,
            packed.offsets,
            packed.longest,
            documents=packed.documents,
            dq=dq,
            dk=dk,
            dv=dv,
            exact=table is None,
            **half.attention_options(),
        )
        if table is not None:
            rope_backward(
                gradients,
                kept.qkv_TCE if half.q_norm else None,
                table.cos_PW,
                table.sin_PW,
                packed.positions_T,
                half.shape.heads,
                half.shape.kv_heads,
                out_TCE=d_qkv_TCE,
                **half.head_norms(),
            )
        return d_qkv_TCE.flatten(1)


class _AttentionNode(torch.autograd.Function):
    """(x, delta) -> (x + delta, attention(norm(x + delta)))."""

    @staticmethod
    def forward(
        ctx: Any,
        half: AttentionHalf,
        packed: PackedTokens,
        table: RotaryTable | None,
        keep: bool,
        offloader: Offloader | None,
        x_TD: torch.Tensor,
        delta_TD: torch.Tensor | None,
        *parameters: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        run = _Pass(half, packed, table)
        y_TX, summed_TD, rstd_T, quantized = run.normed(x_TD, delta_TD)
        kept = run.attend(y_TX, quantized)
        del y_TX, quantized
        result_TD, t_out_TR = run.result(kept.o_THE)
        summed_TD = x_TD.view_as(x_TD) if summed_TD is None else summed_TD
        ctx.run, ctx.rstd_T, ctx.t_out_TR = run, rstd_T, t_out_TR
        ctx.kept = kept if keep else None
        ctx.plain_TD = result_TD if keep and half.post_norm else None
        ctx.offloader = offloader
        if offloader is not None:
            # Attention costs more to compute again than to fetch.
            away = [] if keep else [offloader.put(kept.o_THE), offloader.put(kept.lse_HT)]
            ctx.tickets, ctx.extra = [offloader.put(summed_TD), *away], kept.extra
        ctx.save_for_backward(None if offloader else summed_TD, *parameters)
        return summed_TD, finish(result_TD, half.post_norm, half.multiplier)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        d_sum_TD, d_delta_TD = gradients
        run: _Pass = ctx.run
        summed_TD, *parameters = ctx.saved_tensors
        away: list[torch.Tensor] = []
        if ctx.offloader is not None:
            summed_TD, *away = [ctx.offloader.take(ticket) for ticket in ctx.tickets]
        norm, seeds = run.half.norm, run.seeds[0]
        y_TX, _, _, quantized = run.normed(summed_TD, multiply=ctx.kept is None)
        if ctx.kept is not None:
            kept = ctx.kept
        elif away:
            kept = run.attend_again(y_TX, quantized, away, ctx.extra)
        else:
            kept = run.attend(y_TX, quantized)
        ctx.kept = quantized = None
        do_THE, out_gradients = run.out_backward(kept, d_delta_TD, ctx.t_out_TR, ctx.plain_TD)
        d_qkv_TN, t_qkv_TR = run.attend_backward(kept, do_THE), kept.t_qkv_TR
        del kept, do_THE
        needed = ctx.needs_input_grad[5] or ctx.needs_input_grad[6]
        dy_TD, dt_TR = lora_linear_input_gradient(d_qkv_TN, run.qkv, needed=needed, seeds=seeds)
        y_TD = y_TX[:, : summed_TD.shape[1]]
        qkv_gradients = lora_linear_factor_gradients(d_qkv_TN, dt_TR, y_TD, t_qkv_TR, run.qkv, seeds=seeds)
        dx_TD = None
        if dy_TD is not None:
            dx_TD, _ = rms_norm_backward(
                dy_TD, summed_TD, norm.weight, ctx.rstd_T, offset=norm.offset, residual_gradient_TD=d_sum_TD
            )
        d_delta_in_TD = dx_TD if ctx.needs_input_grad[6] else None
        found = as_types_of([*qkv_gradients, *out_gradients], parameters)
        return None, None, None, None, None, dx_TD, d_delta_in_TD, *found
