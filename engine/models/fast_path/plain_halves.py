"""Halves of a decoder layer that autograd differentiates: their projections are the model's own modules.

For what the fused halves do not compute (DoRA, several adapters, weights that train). Still packed, still on
the kernels for norm, rotary, attention and gated unit. Same legend as the fused halves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from whet.kernels.attention import attention
from whet.kernels.glu import glu
from whet.kernels.rms_norm import rms_norm
from whet.kernels.rope import rope

from .attention_half import AttentionShape, RotaryTable
from .norms import Norm
from .offload import Offloader
from .packed import PackedTokens

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass
class PlainAttentionHalf:
    """As :class:`.attention_half.AttentionHalf`, with the projections as modules of any kind."""

    norm: Norm
    qkv: list[nn.Module]
    out: nn.Module
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
        offloader: Offloader | None = None,
    ) -> Pair:
        """(x + delta, this half's own addition); nothing is offloaded, autograd keeps what it keeps."""

        def add(y_TD: torch.Tensor) -> torch.Tensor:
            shape = self.shape
            qkv_TN = torch.cat([project(y_TD) for project in self.qkv], dim=-1)
            qkv_TCE = qkv_TN.unflatten(-1, (shape.heads + 2 * shape.kv_heads, shape.head_dim))
            if table is not None:
                norms: dict[str, Any] = {}
                if self.q_norm is not None and self.k_norm is not None:
                    norms = {"q_weight": self.q_norm.weight, "k_weight": self.k_norm.weight}
                    norms |= {"eps": self.q_norm.eps, "offset": self.q_norm.offset}
                heads, positions = (shape.heads, shape.kv_heads), packed.positions_T
                qkv_TCE = rope(qkv_TCE, table.cos_PW, table.sin_PW, positions, *heads, **norms)
            q, k, v = qkv_TCE.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
            o_THE = attention(
                q,
                k,
                v,
                packed.offsets,
                packed.longest,
                documents=packed.documents,
                causal=True,
                window=shape.window,
                softcap=shape.softcap,
                scale=shape.scale,
            )
            return finished(self.out(o_THE.flatten(1)), self.post_norm, self.multiplier)

        return _run(add, self.norm, x_TD, delta_TD, keep)


@dataclass
class PlainMlpHalf:
    """As :class:`.mlp_half.MlpHalf`, with the whole MLP as a module of any kind (experts among them).

    Args:
        gate_up: gate and up, or one fused projection; empty runs ``mlp`` as it is.
        down: back to the model's width.
        mlp: the module they belong to.
    """

    norm: Norm
    mlp: nn.Module
    gate_up: list[nn.Module]
    down: nn.Module | None
    kind: str
    post_norm: Norm | None = None
    multiplier: float = 1.0

    def __call__(
        self,
        x_TD: torch.Tensor,
        delta_TD: torch.Tensor,
        keep: bool,
        chunk: int,
        offloader: Offloader | None = None,
    ) -> Pair:
        """(x + delta, this half's own addition), neither chunked nor offloaded."""

        def add(y_TD: torch.Tensor) -> torch.Tensor:
            if self.down is None:
                result_TD = self.mlp(y_TD[None])[0]
            else:
                parts = [project(y_TD) for project in self.gate_up]
                gate_TF, up_TF = parts if len(parts) == 2 else parts[0].chunk(2, dim=-1)
                result_TD = self.down(glu(gate_TF, up_TF, self.kind))
            return finished(result_TD, self.post_norm, self.multiplier)

        return _run(add, self.norm, x_TD, delta_TD, keep)


def finished(result_TD: torch.Tensor, norm: Norm | None, multiplier: float) -> torch.Tensor:
    """What a half adds to the stream, differentiable; see :func:`.norms.finish`."""
    if norm is not None:
        result_TD = rms_norm(result_TD, norm.weight, norm.eps, offset=norm.offset)
    return result_TD if multiplier == 1.0 else result_TD * multiplier


def _run(
    add: Callable[[torch.Tensor], torch.Tensor],
    norm: Norm,
    x_TD: torch.Tensor,
    delta_TD: torch.Tensor | None,
    keep: bool,
) -> Pair:
    if delta_TD is None:
        summed_TD, y_TD = x_TD, rms_norm(x_TD, norm.weight, norm.eps, offset=norm.offset)
    else:
        y_TD, summed_TD = rms_norm(x_TD, norm.weight, norm.eps, offset=norm.offset, residual=delta_TD)
    if keep or not torch.is_grad_enabled():
        return summed_TD, add(y_TD)
    added: torch.Tensor = checkpoint(add, y_TD, use_reentrant=False)
    return summed_TD, added
