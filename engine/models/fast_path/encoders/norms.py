"""Layer norms of an encoder: in front of a half, whether the residual is what was normed or its norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from whet.kernels.layer_norm import layer_norm, layer_norm_backward, layer_norm_forward

from ..projections import NotFusedError


@dataclass(frozen=True)
class LayerNorm:
    """One of torch's modules, whose weights are looked up when they are needed."""

    module: nn.LayerNorm

    @property
    def weight(self) -> torch.Tensor:
        return self.module.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.module.bias

    def check_frozen(self) -> None:
        """Raises NotFusedError where it trains."""
        if any(parameter.requires_grad for parameter in self.module.parameters()):
            raise NotFusedError("norms train")

    def forward(
        self, x_TD: torch.Tensor, delta_TD: torch.Tensor | None, out_TD: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """norm(x + delta) into ``out_TD``; x + delta, mean and 1/deviation of the rows."""
        _, summed_TD, mean_T, rstd_T = layer_norm_forward(
            x_TD, self.weight, self.bias, self.module.eps, residual_TD=delta_TD, out_TD=out_TD
        )
        return x_TD if summed_TD is None else summed_TD, mean_T, rstd_T

    def again(self, summed_TD: torch.Tensor, out_TD: torch.Tensor) -> None:
        """norm(summed) into ``out_TD`` once more."""
        layer_norm_forward(summed_TD, self.weight, self.bias, self.module.eps, out_TD=out_TD)

    def backward(
        self,
        dy_TD: torch.Tensor,
        summed_TD: torch.Tensor,
        statistics: tuple[torch.Tensor, torch.Tensor],
        *,
        more_dy_TD: torch.Tensor | None = None,
        residual_gradient_TD: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Gradient of x + delta; what reaches the norm, or its input, by the stream is added."""
        dx_TD, _, _ = layer_norm_backward(
            dy_TD,
            summed_TD,
            self.weight,
            *statistics,
            more_dy_TD=more_dy_TD,
            residual_gradient_TD=residual_gradient_TD,
        )
        return dx_TD

    def __call__(self, x_TD: torch.Tensor, delta_TD: torch.Tensor | None = None) -> torch.Tensor:
        """Differentiable, in its own weights too."""
        result = layer_norm(x_TD, self.weight, self.bias, self.module.eps, residual=delta_TD)
        normed_TD: torch.Tensor = result if delta_TD is None else result[0]
        return normed_TD
