"""The MLP half of a decoder layer as one autograd node: norm, gate and up, their product, down.

Gate and up are kept for the backward pass or computed again, by the planner's choice; their product always
is. LoRA updates that do not ride in a product are added by the gated unit, which reads what they belong to
anyway. Long rows go through in chunks, so that what is F wide never stands whole. Legend: T tokens, D width,
F width inside, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from whet.kernels.fp8 import quantize_rows
from whet.kernels.glu import glu_quantized_forward
from whet.kernels.glu_low_rank import MOST_RANK, LowRank, glu_low_rank_backward, glu_low_rank_forward
from whet.kernels.lora_base import Quantized
from whet.kernels.lora_linear import (
    as_types_of,
    lora_linear_factor_gradients,
    lora_linear_forward,
    lora_linear_input_gradient,
)
from whet.kernels.rms_norm import rms_norm_backward

from .norms import Norm, finish, normed, unfinish
from .offload import Offloader
from .projections import Projection


@dataclass
class MlpHalf:
    """Modules and numbers of the half; :meth:`__call__` runs it.

    Args:
        norm: before the projections.
        gate_up: gate and up as one projection, gate first.
        down: back to the model's width.
        kind: ``swiglu``, ``geglu`` or ``geglu_tanh``.
        post_norm: on the half's result (Gemma 2 and 3).
        multiplier: of the half's result (Granite).
    """

    norm: Norm
    gate_up: Projection
    down: Projection
    kind: str
    post_norm: Norm | None = None
    multiplier: float = 1.0

    @property
    def drops(self) -> bool:
        """Whether an adapter in force has dropout."""
        return self.gate_up.stack.drops or self.down.stack.drops

    def projections(self) -> tuple[Projection, Projection]:
        """Both, whose factors have to be fresh."""
        return self.gate_up, self.down

    def __call__(
        self,
        x_TD: torch.Tensor,
        delta_TD: torch.Tensor,
        keep: bool,
        chunk: int,
        offloader: Offloader | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x + delta, this half's own addition).

        Args:
            keep: hold gate and up for the backward pass.
            chunk: tokens that go through at a time.
            offloader: takes the input until the backward pass.
        """
        parameters = [*self.gate_up.parameters(), *self.down.parameters()]
        result: tuple[torch.Tensor, torch.Tensor] = _MlpNode.apply(
            self, keep, chunk, offloader, x_TD, delta_TD, *parameters
        )
        return result


@dataclass
class _Kept:
    """Of one chunk, what its backward pass wants; gate and up as :meth:`_Pass.gate_up` leaves them."""

    gate_up_TN: torch.Tensor
    t_in_TR: torch.Tensor | None
    t_out_TR: torch.Tensor | None


class _Pass:
    """One forward or backward pass over a half: the seeds in force, and the steps both share."""

    def __init__(self, half: MlpHalf, seeds: Any = None) -> None:
        self.half, self.into, self.out = half, half.gate_up.stack, half.down.stack
        self.seeds = seeds or (self.into.draw_seeds(), self.out.draw_seeds())
        width = self.out.base.inputs
        self.halves = {"gate_update": slice(0, width), "up_update": slice(width, 2 * width)}
        columns = [self.into.columns(outputs) for outputs in self.halves.values()]
        fit = all(each is None or each.stop - each.start <= MOST_RANK for each in columns)
        self.defers_gate_up = self.into.rank > 0 and not self.into.base.rides and fit
        self.defers_dh = 0 < self.out.rank <= MOST_RANK and not self.out.drops

    def normed(
        self,
        x_TD: torch.Tensor,
        delta_TD: torch.Tensor | None = None,
        summed_TD: torch.Tensor | None = None,
        *,
        multiply: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor, Quantized | None]:
        """norm(x + delta) with room behind, rstd, and for a product (``multiply``) the FP8 rows."""
        y_TX = self.into.with_room(len(x_TD))
        quantize = multiply and self.into.base.quantizes
        out_TD = y_TX[:, : x_TD.shape[1]]
        _, rstd_T, quantized = normed(
            self.half.norm, x_TD, out_TD, delta_TD=delta_TD, summed_TD=summed_TD, quantize=quantize
        )
        return y_TX, rstd_T, quantized

    def gate_up(
        self, y_TX: torch.Tensor, quantized: Quantized | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gate and up beside one another, and t of the product; :meth:`updates` says what they lack."""
        return lora_linear_forward(
            y_TX,
            self.into,
            bias_N=self.half.gate_up.bias(),
            seeds=self.seeds[0],
            quantized=quantized,
            defer=self.defers_gate_up,
        )

    def updates(self, t_in_TR: torch.Tensor | None) -> dict[str, LowRank]:
        """What gate and up still lack, for the gated unit."""
        if t_in_TR is None or not self.defers_gate_up:
            return {}
        found: dict[str, LowRank] = {}
        for name, outputs in self.halves.items():
            columns = self.into.columns(outputs)
            if columns is not None:
                found[name] = t_in_TR[:, columns], self.into.sb_NR[outputs, columns].T
        return found

    def down(
        self, gate_up_TN: torch.Tensor, t_in_TR: torch.Tensor | None, out_TD: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The half's plain result and t of the product."""
        h_TX = self.out.with_room(len(gate_up_TN))
        gate_TF, up_TF = gate_up_TN.chunk(2, dim=1)
        h_TF, kind = h_TX[:, : gate_TF.shape[1]], self.half.kind
        quantized, updates = None, self.updates(t_in_TR)
        if self.out.base.quantizes and not updates:
            _, *rows = glu_quantized_forward(gate_TF, up_TF, kind, out_TF=h_TF)
            quantized = rows[0], rows[1]
        else:
            glu_low_rank_forward(gate_TF, up_TF, kind, out_TF=h_TF, **updates)
            quantized = quantize_rows(h_TF) if self.out.base.quantizes else None
        bias_N = self.half.down.bias()
        return lora_linear_forward(
            h_TX, self.out, bias_N=bias_N, out_TN=out_TD, seeds=self.seeds[1], quantized=quantized
        )

    def backward(
        self, kept: _Kept, y_TD: torch.Tensor, d_result_TD: torch.Tensor, plain_TD: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        """dy and the factors' gradients of one chunk; the kept gate and up are overwritten."""
        half, gate_up_TN = self.half, kept.gate_up_TN
        if half.post_norm:
            if plain_TD is None:
                plain_TD, _ = self.down(gate_up_TN, kept.t_in_TR)
            d_result_TD = unfinish(d_result_TD, plain_TD, half.post_norm, half.multiplier)
        elif half.multiplier != 1.0:
            d_result_TD = d_result_TD * half.multiplier
        dh_TF, dt_TR = lora_linear_input_gradient(
            d_result_TD, self.out, seeds=self.seeds[1], defer=self.defers_dh
        )
        assert dh_TF is not None
        updates = self.updates(kept.t_in_TR)
        if self.defers_dh and dt_TR is not None:
            updates["dh_update"] = dt_TR, self.out.a_RK
        gate_TF, up_TF = gate_up_TN.chunk(2, dim=1)
        h_TF = torch.empty_like(dh_TF, memory_format=torch.contiguous_format)
        glu_low_rank_backward(dh_TF, gate_TF, up_TF, half.kind, h_TF=h_TF, **updates)
        del dh_TF
        out_gradients = lora_linear_factor_gradients(
            d_result_TD, dt_TR, h_TF, kept.t_out_TR, self.out, seeds=self.seeds[1]
        )
        del h_TF
        dy_TD, dt_TR = lora_linear_input_gradient(gate_up_TN, self.into, seeds=self.seeds[0])
        assert dy_TD is not None
        in_gradients = lora_linear_factor_gradients(
            gate_up_TN, dt_TR, y_TD, kept.t_in_TR, self.into, seeds=self.seeds[0]
        )
        return dy_TD, [*in_gradients, *out_gradients]


def _chunks(tokens: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, tokens)) for start in range(0, tokens, chunk)] or [slice(0, 0)]


class _MlpNode(torch.autograd.Function):
    """(x, delta) -> (x + delta, mlp(norm(x + delta)))."""

    @staticmethod
    def forward(
        ctx: Any,
        half: MlpHalf,
        keep: bool,
        chunk: int,
        offloader: Offloader | None,
        x_TD: torch.Tensor,
        delta_TD: torch.Tensor,
        *parameters: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        run = _Pass(half)
        summed_TD, result_TD, rstd_T = torch.empty_like(x_TD), torch.empty_like(x_TD), []
        kept: list[_Kept | None] = []
        t_out: list[torch.Tensor | None] = []
        for rows in _chunks(len(x_TD), chunk):
            y_TX, rstd, quantized = run.normed(x_TD[rows], delta_TD[rows], summed_TD[rows])
            rstd_T.append(rstd)
            gate_up_TN, t_in_TR = run.gate_up(y_TX, quantized)
            del y_TX, quantized
            _, t_out_TR = run.down(gate_up_TN, t_in_TR, result_TD[rows])
            kept.append(_Kept(gate_up_TN, t_in_TR, t_out_TR) if keep else None)
            t_out.append(t_out_TR)
            del gate_up_TN  # or it would stand beside the next chunk's
        ctx.half, ctx.chunk, ctx.seeds, ctx.kept, ctx.t_out = half, chunk, run.seeds, kept, t_out
        ctx.rstd_T = torch.cat(rstd_T)
        ctx.plain_TD = result_TD if keep and half.post_norm else None
        ctx.offloader = offloader
        ctx.ticket = None if offloader is None else offloader.put(summed_TD)
        ctx.save_for_backward(None if offloader else summed_TD, *parameters)
        return summed_TD, finish(result_TD, half.post_norm, half.multiplier)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        d_sum_TD, d_delta_TD = gradients
        half, norm = ctx.half, ctx.half.norm
        summed_TD, *parameters = ctx.saved_tensors
        if ctx.offloader is not None:
            summed_TD = ctx.offloader.take(ctx.ticket)
        run = _Pass(half, ctx.seeds)
        dx_TD = torch.empty_like(summed_TD)
        totals: list[torch.Tensor | None] = [None] * len(parameters)
        for index, rows in enumerate(_chunks(len(summed_TD), ctx.chunk)):
            x_TD = summed_TD[rows]
            kept = ctx.kept[index]
            y_TX, _, quantized = run.normed(x_TD, multiply=kept is None)
            if kept is None:
                kept = _Kept(*run.gate_up(y_TX, quantized), ctx.t_out[index])
            ctx.kept[index] = quantized = None
            plain_TD = None if ctx.plain_TD is None else ctx.plain_TD[rows]
            y_TD = y_TX[:, : x_TD.shape[1]]
            dy_TD, found = run.backward(kept, y_TD, d_delta_TD[rows], plain_TD)
            del kept, y_TX
            rms_norm_backward(
                dy_TD,
                x_TD,
                norm.weight,
                ctx.rstd_T[rows],
                offset=norm.offset,
                residual_gradient_TD=d_sum_TD[rows],
                out_TD=dx_TD[rows],
            )
            totals = [_added(total, part) for total, part in zip(totals, found, strict=True)]
        return None, None, None, None, dx_TD, dx_TD, *as_types_of(totals, parameters)


def _added(total: torch.Tensor | None, part: torch.Tensor | None) -> torch.Tensor | None:
    return part if total is None or part is None else total.add_(part)
