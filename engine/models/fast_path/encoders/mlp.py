"""The MLP half of an encoder layer: up, GELU (or gate and up and their product), down.

What the first product gives is kept; GELU's result is computed again beside its gradient, in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from whet.kernels.gelu import gelu_backward, gelu_forward
from whet.kernels.gelu_low_rank import gelu_low_rank_backward
from whet.kernels.glu import glu_forward
from whet.kernels.glu_low_rank import MOST_RANK, LowRank, glu_low_rank_backward

from ..packed import PackedTokens
from .half import Drops, Half, Pass

GATED = {"none": "geglu", "tanh": "geglu_tanh"}
"""GELU's form -> the gated unit that has it."""


@dataclass
class EncoderMlp(Half):
    """Modules of the half.

    Args:
        approximate: GELU's form, ``none`` or ``tanh``.
        gated: the first projection is twice as wide: what goes through GELU, and its factor.
    """

    approximate: str = "none"
    gated: bool = False

    def start(self, packed: PackedTokens, drops: Drops, table: Any) -> Pass:
        return _MlpPass(self, packed, drops)


class _MlpPass(Pass):
    def __init__(self, half: EncoderMlp, packed: PackedTokens, drops: Drops) -> None:
        super().__init__(half, packed, drops)
        self.approximate, self.gated = half.approximate, half.gated
        self.defers = 0 < self.out.rank <= MOST_RANK and not self.out.drops

    def between(self, u_TN: torch.Tensor) -> torch.Tensor:
        return u_TN

    def last_input(self, kept: torch.Tensor) -> torch.Tensor:
        h_TX = self.out.with_room(len(kept))
        h_TF = h_TX[:, : self.out.base.inputs]
        if self.gated:
            gate_TF, up_TF = kept.chunk(2, dim=1)
            glu_forward(gate_TF, up_TF, GATED[self.approximate], out_TF=h_TF)
        else:
            gelu_forward(kept, approximate=self.approximate, out_TF=h_TF)
        return h_TX

    def between_backward(
        self, kept: torch.Tensor, dh_TK: torch.Tensor, update: LowRank | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Both gradients go over what they are of, and the last product's input over its own gradient.
        if self.gated:
            gate_TF, up_TF = kept.chunk(2, dim=1)
            glu_low_rank_backward(
                dh_TK, gate_TF, up_TF, GATED[self.approximate], dh_update=update, h_TF=dh_TK
            )
        elif update is None:
            gelu_backward(dh_TK, kept, approximate=self.approximate, out_TF=kept, y_TF=dh_TK)
        else:
            gelu_low_rank_backward(dh_TK, kept, update, approximate=self.approximate, out_TF=kept, y_TF=dh_TK)
        return kept, dh_TK
