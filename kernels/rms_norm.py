"""Root-mean-square norm, with the residual add before it and the gradient add after it fused in.

    y = x · r · (offset + w)        r = 1 / sqrt(mean(x²) + eps)

with the mean over the row (Zhang and Sennrich, 2019, arXiv:1910.07467). ``offset`` is 1 for Gemma, whose
checkpoints store w - 1. With a residual the norm is taken of x + residual, which is returned too. Backward,
with x̂ = x·r and g = dy·(offset + w):

    dx = r · (g - x̂ · mean(g·x̂)) (+ the gradient that reaches x by its other path)
    dw = sum over rows of dy·x̂

Arithmetic is in fp32 and rounded once, on the way out. The weight's gradient is summed by a fixed set of
programs and then over programs, without atomics, so that a run repeats bit by bit.

Legend: T rows, D width, P programs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from .backend import uses_triton
from .fp8 import converts_natively, quantize_rows
from .rms_norm_triton import COMPILATIONS, backward_kernel, forward_kernel
from .rows import accumulation_type, addressable, output, resident_programs, row_stride, row_tile
from .spec import Case, Inputs, KernelSpec, bytes_of


def rms_norm_forward(
    x_TD: torch.Tensor,
    weight_D: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    residual_TD: torch.Tensor | None = None,
    out_TD: torch.Tensor | None = None,
    summed_TD: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """The norm, without autograd.

    Args:
        x_TD: fp32, bf16 or fp16.
        weight_D: any of these types.
        offset: added to the weight.
        residual_TD: added to ``x_TD`` first; the norm is of the sum as rounded to ``x_TD``'s type.
        out_TD: where y goes, row-strided or not; may be ``x_TD``.
        summed_TD: where x + residual goes; may be ``residual_TD`` or ``x_TD``.

    Returns:
        y_TD; x + residual (None without a residual); rstd_T, fp32 (float64 for float64).

    Raises:
        ValueError: for an output of the wrong shape, or rows wider than the kernel takes.
    """
    return _run_forward(x_TD, weight_D, eps, offset, residual_TD, out_TD, summed_TD)[:3]


def rms_norm_quantized_forward(
    x_TD: torch.Tensor,
    weight_D: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    residual_TD: torch.Tensor | None = None,
    out_TD: torch.Tensor | None = None,
    summed_TD: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`rms_norm_forward` and, in the same pass, ``quantize_rows`` of its rounded y.

    Returns:
        y_TD, summed_TD, rstd_T as there; y8_TD float8_e4m3fn, contiguous; scale_T fp32 with y ≈ y8 · scale.

    Raises:
        ValueError: as there.
    """
    y8_TD = torch.empty(x_TD.shape, dtype=torch.float8_e4m3fn, device=x_TD.device)
    y_TD, summed_TD, rstd_T, scale_T = _run_forward(
        x_TD, weight_D, eps, offset, residual_TD, out_TD, summed_TD, y8_TD
    )
    assert scale_T is not None
    return y_TD, summed_TD, rstd_T, y8_TD, scale_T


def _run_forward(
    x_TD: torch.Tensor,
    weight_D: torch.Tensor,
    eps: float,
    offset: float,
    residual_TD: torch.Tensor | None,
    y_TD: torch.Tensor | None,
    summed_TD: torch.Tensor | None,
    y8_TD: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
    """(y_TD, summed_TD, rstd_T, scale_T); the scale, and values in ``y8_TD``, only if that is given."""
    T, D = x_TD.shape
    y_TD = output(y_TD, x_TD)
    summed_TD = None if residual_TD is None else output(summed_TD, x_TD)
    if not uses_triton(x_TD) or x_TD.numel() == 0:
        rstd_T = _reference_forward(x_TD, weight_D, eps, offset, residual_TD, y_TD, summed_TD)
        return y_TD, summed_TD, rstd_T, None if y8_TD is None else quantize_rows(y_TD, out=y8_TD)[1]
    x_TD = addressable(x_TD)
    residual_TD = None if residual_TD is None else addressable(residual_TD)
    rstd_T = torch.empty(T, dtype=torch.float32, device=x_TD.device)
    scale_T = None if y8_TD is None else torch.empty_like(rstd_T)
    tile = row_tile(D)
    forward_kernel[(triton.cdiv(T, tile.rows),)](
        x_TD, residual_TD, weight_D.contiguous(), y_TD, summed_TD, rstd_T,
        None if y8_TD is None else y8_TD.view(torch.uint8), scale_T,
        x_TD.stride(0), row_stride(residual_TD), y_TD.stride(0), row_stride(summed_TD), T, D, eps, offset,
        tile.rows, tile.columns, y8_TD is not None and converts_natively(x_TD.device), num_warps=tile.warps,
    )  # fmt: skip
    return y_TD, summed_TD, rstd_T, scale_T


def rms_norm_backward(
    dy_TD: torch.Tensor,
    x_TD: torch.Tensor,
    weight_D: torch.Tensor,
    rstd_T: torch.Tensor,
    *,
    offset: float = 0.0,
    residual_gradient_TD: torch.Tensor | None = None,
    weight_gradient: bool = False,
    out_TD: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of the norm's input and, if asked, of its weight.

    Args:
        dy_TD: gradient of y.
        x_TD: what was normed: x, or x + residual.
        rstd_T: as the forward pass returned it.
        residual_gradient_TD: gradient that reaches ``x_TD`` by its other path; added.
        weight_gradient: whether the weight trains.
        out_TD: where dx goes; may be ``residual_gradient_TD`` or ``dy_TD``.

    Returns:
        dx_TD in ``x_TD``'s type; dweight_D fp32 (float64 for float64), or None.

    Raises:
        ValueError: for an output of the wrong shape, or rows wider than the kernel takes.
    """
    T, D = x_TD.shape
    dx_TD = output(out_TD, x_TD)
    if not uses_triton(x_TD) or x_TD.numel() == 0:
        dw_D = _reference_backward(
            dy_TD, x_TD, weight_D, rstd_T, offset, residual_gradient_TD, weight_gradient, dx_TD
        )
        return dx_TD, dw_D
    dy_TD, x_TD = addressable(dy_TD), addressable(x_TD)
    other_TD = None if residual_gradient_TD is None else addressable(residual_gradient_TD)
    tile = row_tile(D)
    programs = triton.cdiv(T, tile.rows)
    dw_PD = None
    if weight_gradient:
        programs = min(programs, resident_programs(x_TD.device))
        dw_PD = torch.empty((programs, D), dtype=torch.float32, device=x_TD.device)
    backward_kernel[(programs,)](
        dy_TD, x_TD, weight_D.contiguous(), rstd_T, other_TD, dx_TD, dw_PD,
        dy_TD.stride(0), x_TD.stride(0), row_stride(other_TD), dx_TD.stride(0),
        T, D, offset, programs, tile.rows, tile.columns, num_warps=tile.warps,
    )  # fmt: skip
    return dx_TD, None if dw_PD is None else dw_PD.sum(0)


def _reference_forward(
    x_TD: torch.Tensor,
    weight_D: torch.Tensor,
    eps: float,
    offset: float,
    residual_TD: torch.Tensor | None,
    y_TD: torch.Tensor,
    summed_TD: torch.Tensor | None,
) -> torch.Tensor:
    """Fill ``y_TD`` (and ``summed_TD`` with a residual); rstd_T."""
    wide = accumulation_type(x_TD.dtype)
    if residual_TD is not None and summed_TD is not None:
        x_TD = summed_TD.copy_(x_TD.to(wide) + residual_TD.to(wide))
    x_TD = x_TD.to(wide)
    rstd_T1 = torch.rsqrt(x_TD.square().mean(1, keepdim=True) + eps)
    y_TD.copy_(x_TD * rstd_T1 * (weight_D.to(wide) + offset))
    return rstd_T1[:, 0]


def _reference_backward(
    dy_TD: torch.Tensor,
    x_TD: torch.Tensor,
    weight_D: torch.Tensor,
    rstd_T: torch.Tensor,
    offset: float,
    other_TD: torch.Tensor | None,
    weight_gradient: bool,
    dx_TD: torch.Tensor,
) -> torch.Tensor | None:
    """Fill ``dx_TD``; dweight_D if asked."""
    wide = accumulation_type(x_TD.dtype)
    rstd_T1, dy_TD = rstd_T[:, None], dy_TD.to(wide)
    x_hat_TD = x_TD.to(wide) * rstd_T1
    g_TD = dy_TD * (weight_D.to(wide) + offset)
    dw_D = (dy_TD * x_hat_TD).sum(0) if weight_gradient else None
    gradient_TD = rstd_T1 * (g_TD - x_hat_TD * (g_TD * x_hat_TD).mean(1, keepdim=True))
    dx_TD.copy_(gradient_TD if other_TD is None else gradient_TD + other_TD.to(wide))
    return dw_D


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: torch.Tensor,
        weight_D: torch.Tensor,
        eps: float,
        offset: float,
        residual_TD: torch.Tensor | None,
    ) -> Any:
        y_TD, summed_TD, rstd_T = rms_norm_forward(
            x_TD, weight_D, eps, offset=offset, residual_TD=residual_TD
        )
        ctx.save_for_backward(x_TD if summed_TD is None else summed_TD, weight_D, rstd_T)
        ctx.offset = offset
        ctx.residual_type = None if residual_TD is None else residual_TD.dtype
        ctx.set_materialize_grads(False)
        return y_TD if summed_TD is None else (y_TD, summed_TD)

    @staticmethod
    def backward(ctx: Any, dy_TD: torch.Tensor | None, dsummed_TD: torch.Tensor | None = None) -> Any:
        x_TD, weight_D, rstd_T = ctx.saved_tensors
        if dy_TD is None:
            dx_TD, dw_D = dsummed_TD, None
        else:
            dx_TD, dw_D = rms_norm_backward(
                dy_TD, x_TD, weight_D, rstd_T, offset=ctx.offset,
                residual_gradient_TD=dsummed_TD, weight_gradient=ctx.needs_input_grad[1],
            )  # fmt: skip
        dw_D = None if dw_D is None else dw_D.to(weight_D.dtype)
        dresidual_TD = None
        if dx_TD is not None and ctx.needs_input_grad[4]:
            dresidual_TD = dx_TD.to(ctx.residual_type)
        return dx_TD, dw_D, None, None, dresidual_TD


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    residual: torch.Tensor | None = None,
) -> Any:
    """Root-mean-square norm over the last dimension, differentiable.

    Args:
        x: (..., D).
        weight: (D,).
        eps: added to the mean square.
        offset: added to the weight; 1 for Gemma.
        residual: (..., D), added to ``x`` first.

    Returns:
        y in ``x``'s shape and type; with a residual, the pair (y, x + residual).

    Raises:
        ValueError: if rows are wider than the kernel takes.
    """
    D = x.shape[-1]
    residual_TD = None if residual is None else residual.reshape(-1, D)
    result = _RMSNorm.apply(x.reshape(-1, D), weight, eps, offset, residual_TD)
    if residual is None:
        return result.view(x.shape)
    return result[0].view(x.shape), result[1].view(x.shape)


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    residual: torch.Tensor | None = None,
) -> Any:
    """:func:`rms_norm` in plain torch."""
    wide = accumulation_type(x.dtype)
    summed = x if residual is None else (x.to(wide) + residual.to(wide)).to(x.dtype)
    normed = summed.to(wide) * torch.rsqrt(summed.to(wide).square().mean(-1, keepdim=True) + eps)
    y = (normed * (weight.to(wide) + offset)).to(x.dtype)
    return y if residual is None else (y, summed)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)
    T, D = case.sizes["T"], case.sizes["D"]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    offset = case.sizes.get("offset", 0.0)
    padded = normal(T, D + case.sizes.get("padding", 0)).to(dtype)
    inputs: Inputs = {
        "x": padded[:, :D],
        "weight": (1 - offset + 0.2 * normal(D)).to(dtype),
        "eps": 1e-6,
        "offset": offset,
    }
    if case.sizes.get("residual"):
        inputs["residual"] = normal(T, D).to(dtype)
    return inputs


def _traffic(inputs: Inputs) -> int:
    x, residual = inputs["x"], inputs.get("residual")
    return bytes_of(x, x, inputs["weight"], residual, residual)


def _backward_traffic(inputs: Inputs) -> int:
    x = inputs["x"]
    return bytes_of(x, x, x, inputs["weight"], inputs["weight"], inputs.get("residual"))


SPEC = KernelSpec(
    name="rms_norm",
    operation=rms_norm,
    reference=reference,
    inputs=_inputs,
    cases=(
        Case("plain", {"T": 5, "D": 64}),
        Case("odd", {"T": 7, "D": 37, "residual": True}),
        Case("strided", {"T": 9, "D": 48, "padding": 5, "offset": 1.0}),
        Case("wide", {"T": 2, "D": 5000, "residual": True}),
        Case("narrow", {"T": 5000, "D": 3}),
        Case("empty", {"T": 0, "D": 16, "residual": True}),
    ),
    timed=(
        Case("8b", {"T": 8192, "D": 4096, "residual": True}),
        Case("0.6b", {"T": 8192, "D": 1024, "residual": True}),
    ),
    # bf16's and fp16's is one unit in the last place: Triton's interpreter truncates where a GPU rounds.
    tolerance={torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3},
    traffic=_traffic,
    backward_traffic=_backward_traffic,
    differentiable=("x", "weight", "residual"),
    frozen=("weight",),
    compilations=COMPILATIONS,
)
