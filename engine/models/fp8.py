"""Frozen linear layers held in FP8 (e4m3) with one fp32 scale an output row: half of bf16's memory.

W ≈ W8 · scale (Micikevicius et al., 2022, arXiv:2209.05433). On the fast path the products run in FP8 too;
called as a module, a layer expands its weight, so that transformers' generation and PEFT work on it as on any
other linear layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from whet.kernels.fp8 import dequantize_rows, quantize_rows


class KeepsTypes(nn.Module):
    """Moves between devices; buffers and FP8 weights keep their types when a model is cast."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            plain = isinstance(tensor, nn.Parameter) and tensor.dtype != torch.float8_e4m3fn
            return moved if plain or moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)


class Fp8Linear(KeepsTypes, nn.Linear):
    """y = x (W8 · scale)^T + bias, in the type of x or of autocast. The weight has no gradient.

    Args:
        in_features: K.
        out_features: N.
        bias: whether there is one, in ``compute_dtype``.
        compute_dtype: what the layer stands for; PEFT gives its adapters this type before it casts them.
        device: ``meta`` for a layer whose weight comes later.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        compute_dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=compute_dtype)
        self.compute_dtype = compute_dtype
        self.register_buffer("scale", torch.ones(out_features, dtype=torch.float32, device=device))
        self.scale: torch.Tensor
        self.hold(
            torch.empty(out_features, in_features, dtype=torch.float8_e4m3fn, device=device), self.scale
        )

    @classmethod
    def of(cls, linear: nn.Linear) -> Fp8Linear:
        """A dense layer's values, rounded; the bias is shared."""
        rounded = cls(linear.in_features, linear.out_features, False, linear.weight.dtype, device="meta")
        rounded.hold(*quantize_rows(linear.weight.detach()))
        rounded.bias = linear.bias
        return rounded

    def hold(self, w8_NK: torch.Tensor, scale_N: torch.Tensor) -> None:
        """Take a weight: float8_e4m3fn (N, K) and fp32 (N,)."""
        self.weight = nn.Parameter(w8_NK, requires_grad=False)
        self.scale = scale_N

    def dense(self, dtype: torch.dtype | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """The weight (N, K) as plain numbers, in ``out`` or in ``dtype`` (by default the compute type)."""
        return dequantize_rows(self.weight.detach(), self.scale, out=out, dtype=dtype or self.compute_dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        y: torch.Tensor = _Product.apply(x.to(dtype), self.weight, self.scale)
        return y if self.bias is None else y + self.bias.to(dtype)


class _Product(torch.autograd.Function):
    """x W^T with W expanded twice instead of kept: the expanded weights of a model are what FP8 saves."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w8_NK: torch.Tensor, scale_N: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(w8_NK, scale_N)
        return F.linear(x, dequantize_rows(w8_NK, scale_N, dtype=x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (dy,), (w8_NK, scale_N) = gradients, ctx.saved_tensors
        return dy @ dequantize_rows(w8_NK, scale_N, dtype=dy.dtype), None, None
