"""A mixture of experts as transformers and PEFT leave it, read for the kernels: router, weights, adapters.

transformers stacks all experts of a layer in two parameters; PEFT wraps the module that holds them once for
each parameter that it adapts, one wrapper in another. Legend: T tokens, K slots (experts a token), X experts,
D model width, N outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import ParamWrapper
from torch import nn

from whet.kernels.grouped_gemm import stacked_factors
from whet.kernels.moe import ExpertLinear

from .projections import NotFusedError

ROUTERS: Mapping[str, Callable[[Any], bool]] = {
    "Qwen3MoeTopKRouter": lambda gate: bool(gate.norm_topk_prob),
    "MixtralTopKRouter": lambda gate: True,
}
"""Classes whose weights are the largest of a softmax over experts -> whether they are made to sum to 1."""

EXPERTS = {"Qwen3MoeExperts", "MixtralExperts"}
"""Classes with ``gate_up_proj`` (X, 2F, D), the gate first, and ``down_proj`` (X, D, F), no biases."""


@dataclass(frozen=True)
class Router:
    """transformers' router; its weight is frozen, but tokens learn through it.

    Args:
        gate: the module: tokens -> (logits (T, X), weights (T, K), expert numbers (T, K)).
        normalises: a token's weights sum to 1.
    """

    gate: Any
    normalises: bool

    def __call__(self, y_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits, weights and expert numbers, by the module itself."""
        logits_TX, weights_TK, experts_TK = self.gate(y_TD)
        return logits_TX, weights_TK, experts_TK

    def add_input_gradient(
        self,
        dy_TD: torch.Tensor,
        logits_TX: torch.Tensor,
        experts_TK: torch.Tensor,
        dweights_TK: torch.Tensor,
    ) -> torch.Tensor:
        """dy plus what the weights' gradient makes of it, in place.

        With p = softmax(logits), the weights are p of the chosen experts, over their sum where normalised.
        """
        p_TX = torch.softmax(logits_TX, dim=-1, dtype=dweights_TK.dtype)
        dp_TK = dweights_TK
        if self.normalises:
            chosen_TK = p_TX.gather(1, experts_TK)
            sum_T1 = chosen_TK.sum(1, keepdim=True)
            mean_T1 = (dp_TK * chosen_TK).sum(1, keepdim=True) / sum_T1
            dp_TK = (dp_TK - mean_T1) / sum_T1
        dp_TX = torch.zeros_like(p_TX).scatter_(1, experts_TK, dp_TK)
        dlogits_TX = p_TX * (dp_TX - (p_TX * dp_TX).sum(1, keepdim=True))
        return dy_TD.addmm_(dlogits_TX.to(dy_TD.dtype), self.gate.weight)


@dataclass(frozen=True)
class ExpertProjection:
    """One stacked parameter and the wrapper that adapts it.

    Args:
        experts: the module that holds the parameter.
        name: of the parameter.
        wrapper: PEFT's, None without an adapter.
        adapter: name of the one that is active; "" without.
    """

    experts: nn.Module
    name: str
    wrapper: Any = None
    adapter: str = ""

    @property
    def weight_XND(self) -> torch.Tensor:
        weight: torch.Tensor = getattr(self.experts, self.name)
        return weight

    @property
    def scaling(self) -> float:
        """alpha / rank, or what PEFT made of it; 1 without an adapter."""
        return 1.0 if self.wrapper is None else float(self.wrapper.scaling[self.adapter])

    def parameters(self) -> list[torch.Tensor | None]:
        """PEFT's A (X R, D) and B (N, R X); None where the adapter is absent, merged or switched off."""
        wrapper = self.wrapper
        if wrapper is not None and wrapper.merged and wrapper.disable_adapters:
            wrapper.unmerge()  # as PEFT's own forward pass does it
        if wrapper is None or wrapper.disable_adapters or wrapper.merged:
            return [None, None]
        return [wrapper.lora_A[self.adapter].weight, wrapper.lora_B[self.adapter].weight]

    def layer(self, a: torch.Tensor | None, b: torch.Tensor | None, scaling: float) -> ExpertLinear:
        """Weights and factors for the kernels, these as copies in the weights' type."""
        weight_XND = self.weight_XND
        if a is None or b is None:
            return ExpertLinear(weight_XND)
        a_XRD, b_XNR = (
            factor.detach().to(weight_XND.dtype, memory_format=torch.contiguous_format).contiguous()
            for factor in stacked_factors(a, b, len(weight_XND))
        )
        return ExpertLinear(weight_XND, a_XRD, b_XNR, scaling)


def peft_gradients(da_XRD: torch.Tensor, db_XNR: torch.Tensor) -> Sequence[torch.Tensor]:
    """Gradients of A (X R, D) and B (N, R X), as PEFT lays them out; the inverse of ``stacked_factors``."""
    return da_XRD.flatten(0, 1), db_XNR.permute(1, 2, 0).flatten(1)


@dataclass(frozen=True)
class Experts:
    """Router and both projections of a sparse layer."""

    router: Router
    gate_up: ExpertProjection
    down: ExpertProjection


def read_experts(block: Any, dtype: torch.dtype) -> Experts:
    """The experts of a sparse block (``gate`` and ``experts``).

    Raises:
        NotFusedError: with the reason, when a part is of a kind the kernels do not compute.
    """
    kind = type(block.gate).__name__
    if kind not in ROUTERS:
        raise NotFusedError(f"{kind} is no router the kernels know")
    wrappers, experts = _unwrapped(block.experts)
    if type(experts).__name__ not in EXPERTS:
        raise NotFusedError(f"{type(experts).__name__} are no experts the kernels know")
    _check(block.gate.weight, dtype)
    projections = [_projection(experts, name, wrappers, dtype) for name in ("gate_up_proj", "down_proj")]
    return Experts(Router(block.gate, ROUTERS[kind](block.gate)), *projections)


def _unwrapped(module: Any) -> tuple[dict[str, Any], Any]:
    """PEFT's wrappers by the parameter they adapt, and the module inside."""
    wrappers: dict[str, Any] = {}
    while isinstance(module, ParamWrapper):
        wrappers[module.parameter_name] = module
        module = module.base_layer
    return wrappers, module


def _projection(
    experts: nn.Module, name: str, wrappers: Mapping[str, Any], dtype: torch.dtype
) -> ExpertProjection:
    wrapper = wrappers.get(name)
    plain = ExpertProjection(experts, name)
    _check(plain.weight_XND, dtype)
    if wrapper is None:
        return plain
    active = [adapter for adapter in wrapper.active_adapters if adapter in wrapper.lora_A]
    if len(active) != 1:
        raise NotFusedError(f"{len(active)} adapters are active on one layer")
    return ExpertProjection(experts, name, wrapper, active[0])


def _check(weight: torch.Tensor, dtype: torch.dtype) -> None:
    if weight.requires_grad:
        raise NotFusedError("the base weights train")
    if weight.dtype != dtype:
        raise NotFusedError(f"weights are held in {weight.dtype} and computed in {dtype}")
