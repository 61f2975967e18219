"""The fused halves of a layer without autograd: nothing is kept but keys and values, wherever they go.

Same legend as the halves: T tokens, D width, H query heads, G key/value heads, C = H + 2G, E head size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from whet.kernels.decode_linear import decode_linear, takes
from whet.kernels.glu import glu_forward
from whet.kernels.lora_linear import lora_linear_forward
from whet.kernels.rms_norm import rms_norm_forward
from whet.kernels.rope import rope_forward

from .attention_half import AttentionHalf, RotaryTable
from .mlp_half import MlpHalf
from .norms import Norm, finish
from .projections import Projection

Attend = Callable[[torch.Tensor, torch.Tensor], None]
"""(rotated qkv (T, C, E), where the output goes (T, H, E) row-strided)."""


def attention_step(
    half: AttentionHalf,
    x_TD: torch.Tensor,
    delta_TD: torch.Tensor | None,
    positions_T: torch.Tensor,
    table: RotaryTable | None,
    attend: Attend,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + delta, the half's own addition)."""
    shape = half.shape
    summed_TD, y_TX = _normed(half.norm, half.qkv, x_TD, delta_TD)
    qkv_TCE = _product(half.qkv, y_TX).unflatten(1, (shape.heads + 2 * shape.kv_heads, shape.head_dim))
    if table is not None:
        heads = (shape.heads, shape.kv_heads)
        angles = (table.cos_PW, table.sin_PW)
        rope_forward(qkv_TCE, *angles, positions_T, *heads, out_TCE=qkv_TCE, **half.head_norms())
    o_TX = half.out.stack.with_room(len(x_TD))
    width = shape.heads * shape.head_dim
    attend(qkv_TCE, o_TX[:, :width].unflatten(1, (shape.heads, shape.head_dim)))
    return summed_TD, finish(_product(half.out, o_TX), half.post_norm, half.multiplier)


def mlp_step(half: MlpHalf, x_TD: torch.Tensor, delta_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + delta, the half's own addition)."""
    summed_TD, y_TX = _normed(half.norm, half.gate_up, x_TD, delta_TD)
    gate_TF, up_TF = _product(half.gate_up, y_TX).chunk(2, dim=1)
    h_TX = half.down.stack.with_room(len(x_TD))
    glu_forward(gate_TF, up_TF, half.kind, out_TF=h_TX[:, : gate_TF.shape[1]])
    return summed_TD, finish(_product(half.down, h_TX), half.post_norm, half.multiplier)


def _normed(
    norm: Norm, into: Projection, x_TD: torch.Tensor, delta_TD: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + delta, and its norm with room behind for the projection that follows."""
    y_TX = into.stack.with_room(len(x_TD))
    _, summed_TD, _ = rms_norm_forward(
        x_TD,
        norm.weight,
        norm.eps,
        offset=norm.offset,
        residual_TD=delta_TD,
        out_TD=y_TX[:, : x_TD.shape[1]],
    )
    return x_TD if summed_TD is None else summed_TD, y_TX


def _product(projection: Projection, x_TX: torch.Tensor) -> torch.Tensor:
    """The projection's output; few rows are multiplied with the weights as they are held."""
    stack, bias_N = projection.stack, projection.bias()
    weights = projection.stored()
    if not all(takes(weight, len(x_TX)) for weight in weights):
        y_TN, _ = lora_linear_forward(x_TX, stack, bias_N=bias_N)
        return y_TN
    x_TK = x_TX[:, : projection.inputs]
    t_TR = x_TK.new_empty(len(x_TK), len(stack.a_RK)) if stack.rank else None
    y_TN = x_TK.new_empty(len(x_TK), sum(projection.outputs))
    outputs = projection.outputs if len(weights) > 1 else (y_TN.shape[1],)
    start = 0
    for weight, size in zip(weights, outputs, strict=True):
        part = slice(start, start + size)
        decode_linear(
            x_TK,
            weight,
            a_RK=stack.a_RK if stack.rank and start == 0 else None,
            sb_NR=None if t_TR is None else stack.sb_NR[part],
            t_BR=t_TR,
            bias_N=None if bias_N is None else bias_N[part],
            out_BN=y_TN[:, part],
        )
        start += size
    return y_TN
