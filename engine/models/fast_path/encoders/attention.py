"""The attention half of an encoder layer: q, k and v, attention inside each document, output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from whet.kernels.attention import attention_backward, attention_forward
from whet.kernels.glu_low_rank import LowRank
from whet.kernels.rope import rope_backward, rope_forward

from ..attention_half import RotaryTable
from ..packed import PackedTokens
from .half import Drops, Half, Pass


@dataclass
class EncoderAttention(Half):
    """Modules and numbers of the half.

    Args:
        heads: of queries, keys and values.
        window: keys a query sees on either side at most; None is all of its document.
    """

    heads: int = 1
    window: int | None = None

    def start(self, packed: PackedTokens, drops: Drops, table: RotaryTable | None) -> Pass:
        return _AttentionPass(self, packed, drops, table)


@dataclass
class _Kept:
    qkv_TCE: torch.Tensor
    o_TX: torch.Tensor
    """Attention's output, with room for the ranks."""
    lse_HT: torch.Tensor
    extra: tuple[Any, ...]


class _AttentionPass(Pass):
    keeps_last_input = True
    packed_gradient = True  # its columns are taken for heads

    def __init__(
        self, half: EncoderAttention, packed: PackedTokens, drops: Drops, table: RotaryTable | None
    ) -> None:
        super().__init__(half, packed, drops)
        self.heads, self.table = half.heads, table
        self.options: dict[str, Any] = {"causal": False, "window": half.window, "documents": packed.documents}
        self.options["dropout"] = drops.attention

    def between(self, u_TN: torch.Tensor) -> _Kept:
        packed, heads = self.packed, self.heads
        qkv_TCE = u_TN.unflatten(1, (3 * heads, -1))
        if self.table is not None:
            angles = (self.table.cos_PW, self.table.sin_PW)
            rope_forward(qkv_TCE, *angles, packed.positions_T, heads, heads, out_TCE=qkv_TCE)
        q, k, v = qkv_TCE.split(heads, dim=1)
        seed = None if self.drops.seeds is None else self.drops.seeds[1:]
        o_TX = self.out.with_room(len(u_TN))
        _, lse_HT, extra = attention_forward(
            q, k, v, packed.offsets, packed.longest, seed=seed, out_THE=self._heads(o_TX), **self.options
        )
        return _Kept(qkv_TCE, o_TX, lse_HT, extra)

    def _heads(self, o_TX: torch.Tensor) -> torch.Tensor:
        return o_TX[:, : self.out.base.inputs].unflatten(1, (self.heads, -1))

    def last_input(self, kept: _Kept) -> torch.Tensor:
        return kept.o_TX

    def between_backward(
        self, kept: _Kept, dh_TK: torch.Tensor, update: LowRank | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        packed, heads = self.packed, self.heads
        d_qkv_TCE = torch.empty_like(kept.qkv_TCE)
        dq, dk, dv = d_qkv_TCE.split(heads, dim=1)
        q, k, v = kept.qkv_TCE.split(heads, dim=1)
        gradients = attention_backward(
            dh_TK.unflatten(1, (heads, -1)),
            q,
            k,
            v,
            self._heads(kept.o_TX),
            kept.lse_HT,
            kept.extra,
            packed.offsets,
            packed.longest,
            dq=dq,
            dk=dk,
            dv=dv,
            exact=self.table is None,
            **self.options,
        )
        if self.table is not None:
            angles = (self.table.cos_PW, self.table.sin_PW)
            rope_backward(gradients, None, *angles, packed.positions_T, heads, heads, out_TCE=d_qkv_TCE)
        return d_qkv_TCE.flatten(1), kept.o_TX[:, : self.out.base.inputs]
