"""What both halves of an encoder layer share: the norm in front, and the stream that goes around.

A half takes (x, delta), norms their sum, and returns the stream and what it adds to it. In BERT, which norms
after the add, the stream is the normed sum; in ModernBERT, which norms before a half, it is the sum. So one
node a half serves both, and the norm after the last half is the program's.

Legend: T tokens, D width, N the first product's outputs, K the last one's inputs, X with room for the ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from whet.kernels.dropout import dropout_forward
from whet.kernels.glu_low_rank import LowRank
from whet.kernels.lora_linear import (
    as_types_of,
    lora_linear_factor_gradients,
    lora_linear_forward,
    lora_linear_input_gradient,
)

from ..packed import PackedTokens
from ..projections import Projection
from .norms import LayerNorm


@dataclass(frozen=True)
class Drops:
    """Dropout of one half while training; both numbers are 0 where none is.

    Args:
        result: probability, of what the half adds.
        attention: probability, of the attention's weights.
        seeds: int32 on the device: the result's, the attention's.
    """

    result: float = 0.0
    attention: float = 0.0
    seeds: torch.Tensor | None = None

    def drop(self, x_TD: torch.Tensor, out_TD: torch.Tensor | None = None) -> torch.Tensor:
        """The half's result, or its gradient, with elements dropped."""
        if self.seeds is None or not self.result:
            return x_TD
        return dropout_forward(x_TD, self.result, self.seeds[:1], out_TD=out_TD)


NONE = Drops()


@dataclass
class Half(ABC):
    """Modules of a half.

    Args:
        norm: in front of the first product; None where what comes is normed already.
        into: the first projection.
        out: the last one.
        post_norm: the stream is the normed sum.
    """

    norm: LayerNorm | None
    into: Projection
    out: Projection
    post_norm: bool

    @property
    def drops(self) -> bool:
        """Whether an adapter in force has dropout of its own."""
        return self.into.stack.drops or self.out.stack.drops

    def projections(self) -> tuple[Projection, Projection]:
        """Both, whose factors have to be fresh."""
        return self.into, self.out

    def __call__(
        self,
        x_TD: torch.Tensor,
        delta_TD: torch.Tensor | None,
        packed: PackedTokens,
        keep: bool,
        drops: Drops = NONE,
        table: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(stream, the half's own addition).

        Args:
            x_TD: the stream before.
            delta_TD: what the half before added.
            packed: documents.
            keep: hold what is between the products for the backward pass; else it is computed again.
            drops: dropout.
            table: rotary angles.
        """
        parameters = [*self.into.parameters(), *self.out.parameters()]
        run = self.start(packed, drops, table)
        run.keep = keep
        result: tuple[torch.Tensor, torch.Tensor] = _Node.apply(run, x_TD, delta_TD, *parameters)
        return result

    @abstractmethod
    def start(self, packed: PackedTokens, drops: Drops, table: Any) -> Pass:
        """A pass over the half."""


class Pass(ABC):
    """One forward and backward pass over a half. What is between the products is the subclass's."""

    keep = True
    """Whether what is between the products is held for the backward pass."""
    keeps_last_input = False
    """Whether what the last product reads is among what is kept."""
    defers = False
    """Whether the LoRA update of the last product's gradient is left to what comes next."""
    packed_gradient = False
    """Whether the gradient of what the last product reads has to lie without gaps."""

    def __init__(self, half: Half, packed: PackedTokens, drops: Drops) -> None:
        self.half, self.packed, self.drops = half, packed, drops
        self.into, self.out = half.into.stack, half.out.stack
        self.seeds = self.into.draw_seeds(), self.out.draw_seeds()

    @abstractmethod
    def between(self, u_TN: torch.Tensor) -> Any:
        """From the first product's result to what the last one reads, and what the way back wants."""

    @abstractmethod
    def last_input(self, kept: Any) -> torch.Tensor:
        """What the last product reads (T, K or wider), from what was kept."""

    @abstractmethod
    def between_backward(
        self, kept: Any, dh_TK: torch.Tensor, update: LowRank | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradient of the first product's result; and what the last product had read (T, K).

        Args:
            kept: overwritten.
            dh_TK: gradient of what the last product had read; overwritten.
            update: what it still lacks, where the pass ``defers``.
        """

    def first(self, y_TX: torch.Tensor) -> tuple[Any, torch.Tensor | None]:
        """The first product and what follows; t of the product, which lies behind y."""
        bias_N = self.half.into.bias()
        u_TN, t_TR = lora_linear_forward(y_TX, self.into, bias_N=bias_N, seeds=self.seeds[0], in_place=True)
        return self.between(u_TN), t_TR

    def last(self, h_TX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The half's addition, elements dropped, and t of the product."""
        bias_N, in_place = self.half.out.bias(), self.keep and self.keeps_last_input
        result_TD, t_TR = lora_linear_forward(
            h_TX, self.out, bias_N=bias_N, seeds=self.seeds[1], in_place=in_place
        )
        return self.drops.drop(result_TD, result_TD), t_TR

    def last_backward(self, d_result_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gradient of what the last product read, and dt."""
        dh_TK, dt_TR = lora_linear_input_gradient(
            d_result_TD, self.out, packed=self.packed_gradient, seeds=self.seeds[1], defer=self.defers
        )
        assert dh_TK is not None
        return dh_TK, dt_TR


class _Node(torch.autograd.Function):
    """(x, delta) -> (stream, addition)."""

    @staticmethod
    def forward(
        ctx: Any,
        run: Pass,
        x_TD: torch.Tensor,
        delta_TD: torch.Tensor | None,
        *parameters: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        norm, width = run.half.norm, x_TD.shape[1]
        y_TX = run.into.with_room(len(x_TD))
        y_TD, statistics = y_TX[:, :width], None
        if norm is None:
            summed_TD = y_TD.copy_(x_TD)
        else:
            summed_TD, *found = norm.forward(x_TD, delta_TD, y_TD)
            statistics = tuple(found)
        kept, t_into_TR = run.first(y_TX)
        result_TD, t_out_TR = run.last(run.last_input(kept))
        ctx.run, ctx.statistics, keep = run, statistics, run.keep
        ctx.t_out_TR, ctx.t_into_TR = t_out_TR, t_into_TR if keep else None
        ctx.kept = kept if keep else None
        stream_TD = y_TD if run.half.post_norm or norm is None else summed_TD
        if stream_TD is x_TD:
            stream_TD = x_TD.view_as(x_TD)
        # A tensor of the same memory as the one returned: the node may hold it without a cycle.
        ctx.save_for_backward(y_TX if keep or norm is None else None, summed_TD, *parameters)
        return stream_TD, result_TD

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        d_stream_TD, d_result_TD = gradients
        run: Pass = ctx.run
        half, norm, seeds = run.half, run.half.norm, run.seeds
        y_TX, summed_TD, *parameters = ctx.saved_tensors
        kept, t_into_TR, width = ctx.kept, ctx.t_into_TR, summed_TD.shape[1]
        if y_TX is None:
            assert norm is not None
            y_TX = run.into.with_room(len(summed_TD))
            norm.again(summed_TD, y_TX[:, :width])
        if kept is None:
            kept, t_into_TR = run.first(y_TX)
        ctx.kept = None
        d_result_TD = run.drops.drop(d_result_TD)
        dh_TK, dt_out_TR = run.last_backward(d_result_TD)
        update = (dt_out_TR, run.out.a_RK) if run.defers and dt_out_TR is not None else None
        du_TN, h_TK = run.between_backward(kept, dh_TK, update)
        del kept, dh_TK
        out_gradients = lora_linear_factor_gradients(
            d_result_TD, dt_out_TR, h_TK, ctx.t_out_TR, run.out, seeds=seeds[1]
        )
        del h_TK
        needed = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        dy_TD, dt_TR = lora_linear_input_gradient(du_TN, run.into, needed=needed, seeds=seeds[0])
        into_gradients = lora_linear_factor_gradients(
            du_TN, dt_TR, y_TX[:, :width], t_into_TR, run.into, seeds=seeds[0]
        )
        dx_TD = d_delta_TD = None
        if dy_TD is not None and norm is None:
            dx_TD = dy_TD.add_(d_stream_TD)
        elif dy_TD is not None and norm is not None:
            way = "more_dy_TD" if half.post_norm else "residual_gradient_TD"
            dx_TD = d_delta_TD = norm.backward(dy_TD, summed_TD, ctx.statistics, **{way: d_stream_TD})
        found = as_types_of([*into_gradients, *out_gradients], parameters)
        return None, dx_TD, d_delta_TD if ctx.needs_input_grad[2] else None, *found
