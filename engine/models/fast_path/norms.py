"""RMS norms of a model, as the kernels want them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from whet.kernels.rms_norm import rms_norm_backward, rms_norm_forward

from .projections import NotFusedError


@dataclass(frozen=True)
class Norm:
    """y = x / rms(x) * (offset + weight)."""

    module: nn.Module
    eps: float
    offset: float = 0.0

    @property
    def weight(self) -> torch.Tensor:
        weight: torch.Tensor = self.module.weight  # type: ignore[assignment]
        return weight

    def check_frozen(self) -> None:
        """Raises NotFusedError where the weight trains, which the fused halves leave to autograd."""
        if self.weight.requires_grad:
            raise NotFusedError("norm weights train")


def finish(result_TD: torch.Tensor, norm: Norm | None, multiplier: float) -> torch.Tensor:
    """What a half adds to the stream: its result, normalised (Gemma 2, 3) and scaled (Granite)."""
    if norm is not None:
        result_TD, _, _ = rms_norm_forward(result_TD, norm.weight, norm.eps, offset=norm.offset)
    return result_TD if multiplier == 1.0 else result_TD.mul_(multiplier)


def unfinish(
    gradient_TD: torch.Tensor, result_TD: torch.Tensor, norm: Norm, multiplier: float
) -> torch.Tensor:
    """Gradient of a half's result from the gradient of what it added."""
    if multiplier != 1.0:
        gradient_TD = gradient_TD * multiplier
    result = result_TD.float()
    rstd_T = (result.square().mean(-1) + norm.eps).rsqrt()
    dx_TD, _ = rms_norm_backward(gradient_TD, result_TD, norm.weight, rstd_T, offset=norm.offset)
    return dx_TD
