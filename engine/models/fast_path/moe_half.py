"""The MLP half of a sparse decoder layer as one autograd node: norm, router, experts, their sum.

As in :mod:`.mlp_half`, gate and up are kept for the backward pass or computed again, and long rows go through
in chunks. A token's rows are only laid out expert by expert where they are F wide: what is D wide is gathered
as products read it, but for the experts' outputs, which live until they are summed. The routing itself is
always kept; it is small, and a second pass must not choose other experts. Nothing waits for the device.

Legend: T tokens, K slots (experts a token), S = T K rows sorted by expert, X experts, D model width, F width
inside an expert, N = 2F, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from whet.kernels.lora_linear import as_types_of
from whet.kernels.moe import (
    expert_factor_gradients,
    expert_forward,
    expert_input_gradient,
    expert_update,
)
from whet.kernels.moe_routing import Routing, route, sum_slots
from whet.kernels.rms_norm import rms_norm_backward
from whet.kernels.rows import accumulation_type
from whet.kernels.weighted_glu import weighted_glu_backward, weighted_glu_forward

from .chunking import add_up, chunks
from .experts import Experts, peft_gradients
from .norms import Norm, normed
from .offload import Offloader
from .projections import Projection


@dataclass
class MoeHalf:
    """Modules and numbers of the half; :meth:`__call__` runs it.

    Args:
        norm: before router and experts.
        experts: of the layer.
        kind: ``swiglu``, ``geglu`` or ``geglu_tanh``.
    """

    norm: Norm
    experts: Experts
    kind: str

    drops = False
    """PEFT has no dropout for adapters of parameters."""

    def projections(self) -> tuple[Projection, ...]:
        """None whose factors have to be fresh: experts' factors are read when they are needed."""
        return ()

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
        parameters = [*self.experts.gate_up.parameters(), *self.experts.down.parameters()]
        result: tuple[torch.Tensor, torch.Tensor] = _MoeNode.apply(
            self, keep, chunk, offloader, x_TD, delta_TD, *parameters
        )
        return result


@dataclass
class _Routed:
    """Which experts the tokens of a chunk go to, and with what weight."""

    logits_TX: torch.Tensor
    experts_TK: torch.Tensor
    share_S: torch.Tensor
    tokens_S: torch.Tensor
    offsets_X1: torch.Tensor
    positions_TK: torch.Tensor


@dataclass
class _Kept:
    """Of one chunk, what its backward pass wants; ``t_out_SR`` can be had from gate and up."""

    gate_up_SN: torch.Tensor
    t_in_SR: torch.Tensor | None
    t_out_SR: torch.Tensor | None = None


Gradients = list[torch.Tensor | None]


class _Pass:
    """One forward or backward pass over a half: factors in the compute type, and the steps both share."""

    def __init__(
        self, half: MoeHalf, parameters: Sequence[torch.Tensor | None], scalings: tuple[float, float]
    ) -> None:
        self.half, self.router, self.scalings = half, half.experts.router, scalings
        a_in, b_in, a_out, b_out = parameters
        self.into = half.experts.gate_up.layer(a_in, b_in, scalings[0])
        self.out = half.experts.down.layer(a_out, b_out, scalings[1])

    def route(self, y_TD: torch.Tensor) -> _Routed:
        """The router's choice, and the tokens sorted by it."""
        logits_TX, weights_TK, experts_TK = self.router(y_TD)
        routing: Routing = route(experts_TK, len(self.into.weight_XND))
        share_S = weights_TK.flatten()[routing.slots_S].to(accumulation_type(y_TD.dtype))
        return _Routed(
            logits_TX, experts_TK, share_S, routing.tokens_S, routing.offsets_X1, routing.positions_TK
        )

    def gate_up(self, y_TD: torch.Tensor, routed: _Routed) -> _Kept:
        """Gate and up beside one another, and t of the product."""
        return _Kept(*expert_forward(y_TD, self.into, routed.offsets_X1, rows_S=routed.tokens_S))

    def down(self, kept: _Kept, routed: _Routed, out_TD: torch.Tensor) -> None:
        """The tokens' sums into ``out_TD``; t of the product beside gate and up."""
        gate_SF, up_SF = kept.gate_up_SN.chunk(2, dim=1)
        h_SF = weighted_glu_forward(gate_SF, up_SF, routed.share_S, self.half.kind)
        y_SD, kept.t_out_SR = expert_forward(h_SF, self.out, routed.offsets_X1)
        del h_SF
        sum_slots(y_SD, routed.positions_TK, out_TD=out_TD)

    def backward(
        self, kept: _Kept, routed: _Routed, y_TD: torch.Tensor, d_result_TD: torch.Tensor
    ) -> tuple[torch.Tensor, Gradients]:
        """dy and the factors' gradients (dA, dB of gate and up, of down) of one chunk; the kept gate and up
        are overwritten."""
        offsets, tokens_S, gate_up_SN = routed.offsets_X1, routed.tokens_S, kept.gate_up_SN
        dh_SF, dt_SR = expert_input_gradient(d_result_TD, self.out, offsets, rows_S=tokens_S)
        gate_SF, up_SF = gate_up_SN.chunk(2, dim=1)
        dshare_S = weighted_glu_backward(dh_SF, gate_SF, up_SF, routed.share_S, self.half.kind)
        h_SF = dh_SF  # which the kernel has written over it
        found: Gradients = [None] * 4
        if dt_SR is not None:
            t_SR = expert_update(h_SF, self.out, offsets) if kept.t_out_SR is None else kept.t_out_SR
            assert t_SR is not None
            found[2:] = expert_factor_gradients(d_result_TD, dt_SR, h_SF, t_SR, offsets, dy_rows_S=tokens_S)
        del h_SF, dh_SF
        dy_SD, dt_SR = expert_input_gradient(gate_up_SN, self.into, offsets)
        if dt_SR is not None and kept.t_in_SR is not None:
            found[:2] = expert_factor_gradients(
                gate_up_SN, dt_SR, y_TD, kept.t_in_SR, offsets, x_rows_S=tokens_S
            )
        dy_TD = sum_slots(dy_SD, routed.positions_TK)
        del dy_SD
        dweights_TK = dshare_S.index_select(0, routed.positions_TK.flatten()).view_as(routed.positions_TK)
        self.router.add_input_gradient(dy_TD, routed.logits_TX, routed.experts_TK, dweights_TK)
        return dy_TD, found


class _MoeNode(torch.autograd.Function):
    """(x, delta) -> (x + delta, experts(norm(x + delta)))."""

    @staticmethod
    def forward(
        ctx: Any,
        half: MoeHalf,
        keep: bool,
        chunk: int,
        offloader: Offloader | None,
        x_TD: torch.Tensor,
        delta_TD: torch.Tensor,
        *parameters: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        run = _Pass(half, parameters, (half.experts.gate_up.scaling, half.experts.down.scaling))
        summed_TD, result_TD, rstd_T = torch.empty_like(x_TD), torch.empty_like(x_TD), []
        all_routed: list[_Routed] = []
        all_kept: list[_Kept | None] = []
        for rows in chunks(len(x_TD), chunk):
            y_TD = torch.empty_like(summed_TD[rows])
            _, rstd, _ = normed(
                half.norm, x_TD[rows], y_TD, delta_TD=delta_TD[rows], summed_TD=summed_TD[rows]
            )
            rstd_T.append(rstd)
            routed = run.route(y_TD)
            kept = run.gate_up(y_TD, routed)
            del y_TD
            run.down(kept, routed, result_TD[rows])
            all_routed.append(routed)
            all_kept.append(kept if keep else None)
            del kept
        ctx.half, ctx.chunk, ctx.scalings = half, chunk, run.scalings
        ctx.routed, ctx.kept, ctx.rstd_T = all_routed, all_kept, torch.cat(rstd_T)
        ctx.offloader = offloader
        ctx.ticket = None if offloader is None else offloader.put(summed_TD)
        ctx.save_for_backward(None if offloader else summed_TD, *parameters)
        return summed_TD, result_TD

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        d_sum_TD, d_delta_TD = gradients
        half, norm = ctx.half, ctx.half.norm
        summed_TD, *parameters = ctx.saved_tensors
        if ctx.offloader is not None:
            summed_TD = ctx.offloader.take(ctx.ticket)
        run = _Pass(half, parameters, ctx.scalings)
        dx_TD = torch.empty_like(summed_TD)
        totals: Gradients = [None] * len(parameters)
        for index, rows in enumerate(chunks(len(summed_TD), ctx.chunk)):
            x_TD, routed, kept = summed_TD[rows], ctx.routed[index], ctx.kept[index]
            ctx.routed[index] = ctx.kept[index] = None
            y_TD = torch.empty_like(x_TD)
            normed(norm, x_TD, y_TD)
            kept = run.gate_up(y_TD, routed) if kept is None else kept
            dy_TD, found = run.backward(kept, routed, y_TD, d_delta_TD[rows])
            del kept, routed, y_TD
            rms_norm_backward(
                dy_TD,
                x_TD,
                norm.weight,
                ctx.rstd_T[rows],
                offset=norm.offset,
                residual_gradient_TD=d_sum_TD[rows],
                out_TD=dx_TD[rows],
            )
            totals = [add_up(total, part) for total, part in zip(totals, found, strict=True)]
        return None, None, None, None, dx_TD, dx_TD, *as_types_of(_as_peft(totals), parameters)


def _as_peft(totals: Gradients) -> Gradients:
    """Gradients of both pairs of factors in PEFT's layout; a pair is there or is not."""
    laid_out: Gradients = []
    for da_XRD, db_XNR in zip(totals[::2], totals[1::2], strict=True):
        laid_out += [None, None] if da_XRD is None or db_XNR is None else peft_gradients(da_XRD, db_XNR)
    return laid_out
