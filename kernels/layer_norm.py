"""Layer norm, with the residual add before it and the gradient add after it fused in.

    y = x̂ · w + b        x̂ = (x - mean(x)) · r        r = 1 / sqrt(var(x) + eps)

with mean and (biased) variance over the row (Ba, Kiros and Hinton, 2016, arXiv:1607.06450); the bias is
optional. With a residual the norm is taken of x + residual, as encoders that norm after the add do. Backward,
with g = dy·w:

    dx = r · (g - mean(g) - x̂ · mean(g·x̂)) (+ the gradient that reaches x by its other path)
    dw = sum over rows of dy·x̂        db = sum over rows of dy

Arithmetic is in fp32 and rounded once; the variance is of centred values. The sums over rows are taken by a
fixed set of programs and then over programs, without atomics, so that a run repeats bit by bit.

Legend: T rows, D width, P programs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from .backend import uses_triton
from .layer_norm_triton import COMPILATIONS, backward_kernel, backward_tile, forward_kernel
from .rows import accumulation_type, addressable, output, resident_programs, row_stride, row_tile
from .spec import Case, Inputs, KernelSpec, bytes_of


def layer_norm_forward(
    x_TD: torch.Tensor,
    weight_D: torch.Tensor,
    bias_D: torch.Tensor | None,
    eps: float,
    *,
    residual_TD: torch.Tensor | None = None,
    out_TD: torch.Tensor | None = None,
    summed_TD: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """The norm, without autograd.

    Args:
        x_TD: fp32, bf16 or fp16.
        weight_D: any of these types.
        bias_D: likewise, or None.
        residual_TD: added to ``x_TD`` first; the norm is of the sum as rounded to ``x_TD``'s type.
        out_TD: where y goes, row-strided or not; may be ``x_TD``.
        summed_TD: where x + residual goes; may be ``residual_TD`` or ``x_TD``.

    Returns:
        y_TD; x + residual (None without a residual); mean_T and rstd_T, fp32 (float64 for float64).

    Raises:
        ValueError: for an output of the wrong shape, or rows wider than the kernel takes.
    """
    T, D = x_TD.shape
    y_TD = output(out_TD, x_TD)
    summed_TD = None if residual_TD is None else output(summed_TD, x_TD)
    if not uses_triton(x_TD) or x_TD.numel() == 0:
        statistics = _reference_forward(x_TD, weight_D, bias_D, eps, residual_TD, y_TD, summed_TD)
        return y_TD, summed_TD, *statistics
    x_TD = addressable(x_TD)
    residual_TD = None if residual_TD is None else addressable(residual_TD)
    bias_D = None if bias_D is None else bias_D.contiguous()
    mean_T, rstd_T = torch.empty((2, T), dtype=torch.float32, device=x_TD.device)
    tile = row_tile(D)
    forward_kernel[(triton.cdiv(T, tile.rows),)](
        x_TD, residual_TD, weight_D.contiguous(), bias_D, y_TD, summed_TD, mean_T, rstd_T,
        x_TD.stride(0), row_stride(residual_TD), y_TD.stride(0), row_stride(summed_TD), T, D, eps,
        tile.rows, tile.columns, num_warps=tile.warps,
    )  # fmt: skip
    return y_TD, summed_TD, mean_T, rstd_T


def layer_norm_backward(
    dy_TD: torch.Tensor,
    x_TD: torch.Tensor,
    weight_D: torch.Tensor,
    mean_T: torch.Tensor,
    rstd_T: torch.Tensor,
    *,
    more_dy_TD: torch.Tensor | None = None,
    residual_gradient_TD: torch.Tensor | None = None,
    weight_gradient: bool = False,
    out_TD: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of the norm's input and, if asked, of its weight and bias.

    Args:
        dy_TD: gradient of y.
        x_TD: what was normed: x, or x + residual.
        mean_T: as the forward pass returned it, ``rstd_T`` too.
        more_dy_TD: a second gradient of y, where two paths leave it; added to the first.
        residual_gradient_TD: gradient that reaches ``x_TD`` by its other path; added.
        weight_gradient: whether weight or bias train.
        out_TD: where dx goes; may be ``residual_gradient_TD`` or ``dy_TD``.

    Returns:
        dx_TD in ``x_TD``'s type; dweight_D and dbias_D fp32 (float64 for float64), or None.

    Raises:
        ValueError: for an output of the wrong shape, or rows wider than the kernel takes.
    """
    T, D = x_TD.shape
    dx_TD = output(out_TD, x_TD)
    if not uses_triton(x_TD) or x_TD.numel() == 0:
        if more_dy_TD is not None:
            dy_TD = dy_TD.to(accumulation_type(x_TD.dtype)) + more_dy_TD
        sums = _reference_backward(
            dy_TD, x_TD, weight_D, mean_T, rstd_T, residual_gradient_TD, weight_gradient, dx_TD
        )
        return dx_TD, *sums
    dy_TD, x_TD = addressable(dy_TD), addressable(x_TD)
    other_TD = None if residual_gradient_TD is None else addressable(residual_gradient_TD)
    more_TD = None if more_dy_TD is None else addressable(more_dy_TD)
    tile = backward_tile(D, weight_gradient)
    programs = triton.cdiv(T, tile.rows)
    dw_PD = db_PD = sums_2PD = None
    if weight_gradient:
        programs = min(programs, resident_programs(x_TD.device))
        sums_2PD = torch.empty((2, programs, D), dtype=torch.float32, device=x_TD.device)
        dw_PD, db_PD = sums_2PD
    backward_kernel[(programs,)](
        dy_TD, more_TD, x_TD, weight_D.contiguous(), mean_T, rstd_T, other_TD, dx_TD, dw_PD, db_PD,
        dy_TD.stride(0), row_stride(more_TD), x_TD.stride(0), row_stride(other_TD), dx_TD.stride(0),
        T, D, programs,
        tile.rows, tile.columns, num_warps=tile.warps,
    )  # fmt: skip
    if sums_2PD is None:
        return dx_TD, None, None
    dw_D, db_D = sums_2PD.sum(1)
    return dx_TD, dw_D, db_D


def _reference_forward(
    x_TD: torch.Tensor,
    weight_D: torch.Tensor,
    bias_D: torch.Tensor | None,
    eps: float,
    residual_TD: torch.Tensor | None,
    y_TD: torch.Tensor,
    summed_TD: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill ``y_TD`` (and ``summed_TD`` with a residual); mean_T and rstd_T."""
    wide = accumulation_type(x_TD.dtype)
    if residual_TD is not None and summed_TD is not None:
        x_TD = summed_TD.copy_(x_TD.to(wide) + residual_TD.to(wide))
    mean_T1 = x_TD.to(wide).mean(1, keepdim=True)
    centred_TD = x_TD.to(wide) - mean_T1
    rstd_T1 = torch.rsqrt(centred_TD.square().mean(1, keepdim=True) + eps)
    normed_TD = centred_TD * rstd_T1 * weight_D.to(wide)
    y_TD.copy_(normed_TD if bias_D is None else normed_TD + bias_D.to(wide))
    return mean_T1[:, 0], rstd_T1[:, 0]


def _reference_backward(
    dy_TD: torch.Tensor,
    x_TD: torch.Tensor,
    weight_D: torch.Tensor,
    mean_T: torch.Tensor,
    rstd_T: torch.Tensor,
    other_TD: torch.Tensor | None,
    weight_gradient: bool,
    dx_TD: torch.Tensor,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Fill ``dx_TD``; dweight_D and dbias_D if asked."""
    wide = accumulation_type(x_TD.dtype)
    rstd_T1, dy_TD = rstd_T[:, None], dy_TD.to(wide)
    x_hat_TD = (x_TD.to(wide) - mean_T[:, None]) * rstd_T1
    g_TD = dy_TD * weight_D.to(wide)
    sums = ((dy_TD * x_hat_TD).sum(0), dy_TD.sum(0)) if weight_gradient else (None, None)
    projection_TD = x_hat_TD * (g_TD * x_hat_TD).mean(1, keepdim=True)
    gradient_TD = rstd_T1 * (g_TD - g_TD.mean(1, keepdim=True) - projection_TD)
    dx_TD.copy_(gradient_TD if other_TD is None else gradient_TD + other_TD.to(wide))
    return sums


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: torch.Tensor,
        weight_D: torch.Tensor,
        bias_D: torch.Tensor | None,
        eps: float,
        residual_TD: torch.Tensor | None,
    ) -> Any:
        y_TD, summed_TD, mean_T, rstd_T = layer_norm_forward(
            x_TD, weight_D, bias_D, eps, residual_TD=residual_TD
        )
        ctx.save_for_backward(x_TD if summed_TD is None else summed_TD, weight_D, mean_T, rstd_T)
        ctx.bias_type = None if bias_D is None else bias_D.dtype
        ctx.residual_type = None if residual_TD is None else residual_TD.dtype
        ctx.set_materialize_grads(False)
        return y_TD if summed_TD is None else (y_TD, summed_TD)

    @staticmethod
    def backward(ctx: Any, dy_TD: torch.Tensor | None, dsummed_TD: torch.Tensor | None = None) -> Any:
        x_TD, weight_D, mean_T, rstd_T = ctx.saved_tensors
        wants_dw, wants_db, wants_dresidual = (ctx.needs_input_grad[i] for i in (1, 2, 4))
        dx_TD, dw_D, db_D = dsummed_TD, None, None
        if dy_TD is not None:
            dx_TD, dw_D, db_D = layer_norm_backward(
                dy_TD, x_TD, weight_D, mean_T, rstd_T,
                residual_gradient_TD=dsummed_TD, weight_gradient=wants_dw or wants_db,
            )  # fmt: skip
        dw_D = dw_D.to(weight_D.dtype) if wants_dw and dw_D is not None else None
        db_D = db_D.to(ctx.bias_type) if wants_db and db_D is not None else None
        dresidual_TD = dx_TD.to(ctx.residual_type) if wants_dresidual and dx_TD is not None else None
        return dx_TD, dw_D, db_D, None, dresidual_TD


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    *,
    residual: torch.Tensor | None = None,
) -> Any:
    """Layer norm over the last dimension, differentiable.

    Args:
        x: (..., D).
        weight: (D,).
        bias: (D,) or None.
        eps: added to the variance.
        residual: (..., D), added to ``x`` first.

    Returns:
        y in ``x``'s shape and type; with a residual, the pair (y, x + residual).

    Raises:
        ValueError: if rows are wider than the kernel takes.
    """
    D = x.shape[-1]
    residual_TD = None if residual is None else residual.reshape(-1, D)
    result = _LayerNorm.apply(x.reshape(-1, D), weight, bias, eps, residual_TD)
    if residual is None:
        return result.view(x.shape)
    return result[0].view(x.shape), result[1].view(x.shape)


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    *,
    residual: torch.Tensor | None = None,
) -> Any:
    """:func:`layer_norm` in plain torch."""
    wide = accumulation_type(x.dtype)
    summed = x if residual is None else (x.to(wide) + residual.to(wide)).to(x.dtype)
    bias = None if bias is None else bias.to(wide)
    y = torch.nn.functional.layer_norm(summed.to(wide), x.shape[-1:], weight.to(wide), bias, eps).to(x.dtype)
    return y if residual is None else (y, summed)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)
    T, D = case.sizes["T"], case.sizes["D"]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    wider = (normal(T, D + case.sizes.get("padding", 0)) + case.sizes.get("mean", 0.5)).to(dtype)
    inputs: Inputs = {
        "x": wider[:, :D],
        "weight": (1 + 0.2 * normal(D)).to(dtype),
        "bias": normal(D).to(dtype) if case.sizes.get("bias", True) else None,
        "eps": 1e-5,
    }
    if case.sizes.get("residual"):
        inputs["residual"] = normal(T, D).to(dtype)
    return inputs


def _traffic(inputs: Inputs) -> int:
    x, residual = inputs["x"], inputs.get("residual")
    return bytes_of(x, x, inputs["weight"], inputs["bias"], residual, residual)


def _backward_traffic(inputs: Inputs) -> int:
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    return bytes_of(x, x, x, weight, weight, bias, inputs.get("residual"))


SPEC = KernelSpec(
    name="layer_norm",
    operation=layer_norm,
    reference=reference,
    inputs=_inputs,
    cases=(
        Case("plain", {"T": 5, "D": 64}),
        Case("odd", {"T": 7, "D": 37, "residual": True}),
        Case("strided", {"T": 9, "D": 48, "padding": 5, "bias": False}),
        Case("wide", {"T": 2, "D": 5000, "residual": True}),
        Case("narrow", {"T": 5000, "D": 5}),
        Case("far_from_zero", {"T": 3, "D": 256, "mean": 30.0}),
        Case("empty", {"T": 0, "D": 16, "residual": True}),
    ),
    timed=(
        Case("8b", {"T": 8192, "D": 4096, "residual": True}),
        Case("0.6b", {"T": 8192, "D": 1024, "residual": True}),
        Case("bert", {"T": 8192, "D": 768, "residual": True}),
    ),
    # bf16's and fp16's is one unit in the last place: Triton's interpreter truncates where a GPU rounds.
    tolerance={torch.float32: 4e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3},
    traffic=_traffic,
    backward_traffic=_backward_traffic,
    differentiable=("x", "weight", "bias", "residual"),
    frozen=("weight", "bias"),
    compilations=COMPILATIONS,
)
