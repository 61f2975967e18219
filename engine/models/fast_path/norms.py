"""RMS norms of a model, as the kernels want them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from whet.kernels.lora_base import Quantized
from whet.kernels.rms_norm import rms_norm_backward, rms_norm_forward, rms_norm_quantized_forward

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


def normed(
    norm: Norm,
    x_TD: torch.Tensor,
    out_TD: torch.Tensor,
    *,
    delta_TD: torch.Tensor | None = None,
    summed_TD: torch.Tensor | None = None,
    quantize: bool = False,
) -> tuple[torch.Tensor | None, torch.Tensor, Quantized | None]:
    """norm(x + delta) into ``out_TD``: (x + delta, rstd, the result's rows in FP8 if ``quantize``)."""
    options: dict[str, Any] = {
        "offset": norm.offset,
        "residual_TD": delta_TD,
        "out_TD": out_TD,
        "summed_TD": summed_TD,
    }
    if not quantize:
        _, summed_TD, rstd_T = rms_norm_forward(x_TD, norm.weight, norm.eps, **options)
        return summed_TD, rstd_T, None
    _, summed_TD, rstd_T, y8_TD, scale_T = rms_norm_quantized_forward(x_TD, norm.weight, norm.eps, **options)
    return summed_TD, rstd_T, (y8_TD, scale_T)


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
