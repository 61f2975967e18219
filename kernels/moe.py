"""The MLP of a mixture of experts with LoRA, from routed tokens to their sum, out of this folder's kernels.

    y[t] = sum over the slots k of t:  c[t, k] W_down,e a(x_t W_gate_up,e')        e = experts[t, k]

a is a gated linear unit. The routing weights c are multiplied into its output, which is F wide, instead of
into the experts' outputs, which are D wide: the last layer is linear, so the sum is the same, and c's
gradient needs nothing that is not kept anyway. Expert weights are transformers' ``gate_up_proj`` and
``down_proj``.

:func:`moe_mlp` is the whole, differentiated by autograd. The ``expert_*`` functions are the steps of one
layer of it, for a caller who chooses himself what is kept for the backward pass.

Legend: T tokens, K slots, S = T K rows, X experts, D model width, F expert width, N outputs, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .grouped_gemm import grouped_linear, grouped_matmul, grouped_outer
from .moe_routing import combine, route
from .rows import accumulation_type
from .weighted_glu import weighted_glu


@dataclass(frozen=True)
class ExpertLinear:
    """Stacked weights of one layer of all experts and, optionally, LoRA on them.

    Args:
        weight_XND: (X, N, D).
        lora_a_XRD: (X, R, D), see :func:`.grouped_gemm.stacked_factors` for PEFT's.
        lora_b_XNR: (X, N, R).
        scaling: alpha / rank.
    """

    weight_XND: torch.Tensor
    lora_a_XRD: torch.Tensor | None = None
    lora_b_XNR: torch.Tensor | None = None
    scaling: float = 1.0


def expert_forward(
    x: torch.Tensor, layer: ExpertLinear, offsets_X1: torch.Tensor, *, rows_S: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """y_e = x_e W_e' + t_e B_e' (S, N), and t_e = scaling x_e A_e' (S, R); None without LoRA.

    Args:
        x: (S, D) sorted by expert, or (T, D) with ``rows_S``, the row of x that each sorted row is.
        layer: all of it of x's type.
        offsets_X1: of :class:`.moe_routing.Routing`.
    """
    t_SR = expert_update(x, layer, offsets_X1, rows_S=rows_S)
    y_SN = grouped_matmul(x, layer.weight_XND, offsets_X1, t_SR, layer.lora_b_XNR, rows_S=rows_S)
    return y_SN, t_SR


def expert_update(
    x: torch.Tensor, layer: ExpertLinear, offsets_X1: torch.Tensor, *, rows_S: torch.Tensor | None = None
) -> torch.Tensor | None:
    """t of :func:`expert_forward` alone."""
    if layer.lora_a_XRD is None:
        return None
    return grouped_matmul(x, layer.lora_a_XRD, offsets_X1, scale=layer.scaling, rows_S=rows_S)


def expert_input_gradient(
    dy: torch.Tensor, layer: ExpertLinear, offsets_X1: torch.Tensor, *, rows_S: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """dx_e = dy_e W_e + dt_e A_e (S, D), and dt_e = scaling dy_e B_e (S, R).

    Args:
        dy: (S, N) sorted by expert, or (T, N) with ``rows_S``.
        layer: as forward.
        offsets_X1: as forward.
    """
    b_XNR, dt_SR = layer.lora_b_XNR, None
    if b_XNR is not None:
        dt_SR = grouped_matmul(dy, b_XNR, offsets_X1, scale=layer.scaling, rows_S=rows_S, transposed=True)
    dx_SD = grouped_matmul(
        dy, layer.weight_XND, offsets_X1, dt_SR, layer.lora_a_XRD, rows_S=rows_S, transposed=True
    )
    return dx_SD, dt_SR


def expert_factor_gradients(
    dy: torch.Tensor,
    dt_SR: torch.Tensor,
    x: torch.Tensor,
    t_SR: torch.Tensor,
    offsets_X1: torch.Tensor,
    *,
    dy_rows_S: torch.Tensor | None = None,
    x_rows_S: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dA (X, R, D) and dB (X, N, R) in fp32 (float64 for float64).

    Args:
        dy: (S, N) sorted by expert, or (T, N) with ``dy_rows_S``.
        dt_SR: of :func:`expert_input_gradient`.
        x: (S, D) sorted by expert, or (T, D) with ``x_rows_S``.
        t_SR: of :func:`expert_forward`.
        offsets_X1: as forward.
    """
    dtype = accumulation_type(dy.dtype)
    da_XRD = grouped_outer(dt_SR, x, offsets_X1, rows_S=x_rows_S, dtype=dtype)
    db_XRN = grouped_outer(t_SR, dy, offsets_X1, rows_S=dy_rows_S, dtype=dtype)
    return da_XRD, db_XRN.mT


def moe_mlp(
    x_TD: torch.Tensor,
    experts_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    gate_up: ExpertLinear,
    down: ExpertLinear,
    kind: str = "swiglu",
) -> torch.Tensor:
    """Every token through its experts; differentiable in x, the routing weights, LoRA and expert weights.

    Args:
        x_TD: (T, D).
        experts_TK: (T, K) expert numbers, each below X.
        weights_TK: (T, K), any float type.
        gate_up: (X, 2F, D), the gate first.
        down: (X, D, F).
        kind: of :func:`.glu.glu`.

    Returns:
        (T, D), of x's type. No host sync on a GPU.
    """
    routing = route(experts_TK, gate_up.weight_XND.shape[0])
    offsets = routing.offsets_X1
    both_SF = grouped_linear(
        x_TD,
        gate_up.weight_XND,
        offsets,
        gate_up.lora_a_XRD,
        gate_up.lora_b_XNR,
        gate_up.scaling,
        routing=routing,
    )
    gate_SF, up_SF = both_SF.chunk(2, dim=1)
    h_SF = weighted_glu(gate_SF, up_SF, weights_TK.flatten()[routing.slots_S], kind)
    y_SD = grouped_linear(h_SF, down.weight_XND, offsets, down.lora_a_XRD, down.lora_b_XNR, down.scaling)
    return combine(y_SD, routing.positions_TK, routing.tokens_S)
