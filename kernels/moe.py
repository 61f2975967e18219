"""The MLP of a mixture of experts with LoRA, from routed tokens to their sum, out of this folder's kernels.

    y[t] = sum over the slots k of t:  c[t, k] W_down,e a(x_t W_gate_up,e')        e = experts[t, k]

a is a gated linear unit. The routing weights c are multiplied into its output, which is F wide, instead of
into the experts' outputs, which are D wide: the last layer is linear, so the sum is the same, and c's
gradient needs nothing that is not kept anyway. Expert weights are transformers' ``gate_up_proj`` and
``down_proj``.

Legend: T tokens, K slots, X experts, D model width, F expert width, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .glu import glu
from .grouped_gemm import grouped_linear
from .moe_routing import combine, route


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
    share_S1 = weights_TK.flatten()[routing.slots_S][:, None]
    h_SF = (glu(gate_SF, up_SF, kind) * share_S1).to(x_TD.dtype)
    y_SD = grouped_linear(h_SF, down.weight_XND, offsets, down.lora_a_XRD, down.lora_b_XNR, down.scaling)
    return combine(y_SD, routing.positions_TK, routing.tokens_S)
