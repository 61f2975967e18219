"""The Gaussian error linear unit, a bias added before it (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    y = z P(z),  z = x + bias

``approximate="none"`` takes P as the normal distribution function (1 + erf(z / sqrt 2)) / 2, ``"tanh"`` as
(1 + tanh(u)) / 2 with u = sqrt(2 / pi) (z + 0.044715 z^3), which equals sigmoid(2 u): no tanh is needed and
small values keep their digits. Memory bounds the pass, so the bias rides along free of charge; its gradient
is summed a group of rows at a time and then over the groups, in one fixed order.

Legend: T tokens, F features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from .backend import uses_triton
from .rows import accumulation_type, addressable, output
from .spec import Case, Compilation, Inputs, KernelSpec, bytes_of

APPROXIMATIONS = ("none", "tanh")
_ROWS, _BLOCK = 4, 512  # a program's tile: two 16-byte loads a thread in 16-bit types
_GROUPS = 512  # most partial sums of the bias' gradient


@triton.jit
def _normal_probability(x):
    """(P(x), P'(x)) of the normal distribution for float32 x, each to 2e-6 of itself for |x| up to 5.

    P(-|x|) = exp(-x^2 / 2) q(t) with t = 1 / (1 + 0.26 |x|), q the polynomial with q(0) = 0 of degree 7 whose
    relative error is least for |x| up to 10: 3e-7. The exponential is the density's too, and no digits are
    lost where P is small. An error function takes two branches and twice the instructions, which would bound
    the pass instead of memory.
    """
    inverse = 1.0 + 0.26 * tl.abs(x)
    t = tl.rsqrt(inverse * inverse)  # one instruction more, where a division takes eight
    bell = tl.exp2(x * x * -0.7213475204444817)
    q = t * -0.07556079970650434 + 0.2389361465694149
    q = q * t - 0.12184586667440912
    q = q * t + 0.1786654682318203
    q = q * t + 0.06805617756324828
    q = q * t + 0.1083328517915392
    q = q * t + 0.10341592276534471
    tail = q * (t * bell)
    return tl.where(x < 0, tail, 1.0 - tail), 0.3989422804014327 * bell


@triton.jit
def gelu_probability(x, TANH: tl.constexpr):
    """(P(x), P'(x)) for float32 x; finite for every finite x."""
    if TANH:
        # Beyond 20 the sigmoid is 0 or 1 in float32; the bound keeps the cube and its slope finite.
        near = tl.minimum(tl.maximum(x, -20.0), 20.0)
        twice_u = 1.5957691216057308 * near * (1.0 + 0.044715 * near * near)
        probability = 1.0 / (1.0 + tl.exp(-twice_u))
        slope = 1.5957691216057308 * (1.0 + 0.134145 * near * near)
        density = probability * (1.0 - probability) * slope
    else:
        probability, density = _normal_probability(x)
    return probability, density


@triton.jit
def _tile(columns, BLOCK: tl.constexpr):
    """Group of rows, columns and column mask of this program; neighbouring programs share the rows."""
    blocks = tl.cdiv(columns, BLOCK)
    program = tl.program_id(0)
    column = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    return (program // blocks).to(tl.int64), column, column < columns


@triton.jit(do_not_specialize=["rows"])
def _forward_kernel(
    x_ptr, bias_ptr, y_ptr, rows, columns, x_row, y_row,
    TANH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group, column, inside = _tile(columns, BLOCK)
    row = group * ROWS + tl.arange(0, ROWS)
    mask = (row < rows)[:, None] & inside[None, :]
    z = tl.load(x_ptr + row[:, None] * x_row + column[None, :], mask=mask, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        z += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    probability, _ = gelu_probability(z, TANH)
    y = z * probability
    tl.store(y_ptr + row[:, None] * y_row + column[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _backward_kernel(
    dy_ptr, x_ptr, bias_ptr, dx_ptr, y_ptr, partial_ptr, rows, columns, dy_row, x_row, dx_row, y_row, steps,
    TANH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``steps`` tiles of ROWS rows below each other; y again and a partial sum of dx where wanted."""
    group, column, inside = _tile(columns, BLOCK)
    first = group * ROWS * steps
    if partial_ptr is not None:
        total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for step in range(steps):
        row = first + step * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & inside[None, :]
        dy = tl.load(dy_ptr + row[:, None] * dy_row + column[None, :], mask=mask, other=0.0).to(tl.float32)
        z = tl.load(x_ptr + row[:, None] * x_row + column[None, :], mask=mask, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            z += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        probability, density = gelu_probability(z, TANH)
        dx = dy * (probability + z * density)
        tl.store(dx_ptr + row[:, None] * dx_row + column[None, :], dx.to(dx_ptr.dtype.element_ty), mask=mask)
        if y_ptr is not None:
            y = (z * probability).to(y_ptr.dtype.element_ty)
            tl.store(y_ptr + row[:, None] * y_row + column[None, :], y, mask=mask)
        if partial_ptr is not None:
            total += dx
    if partial_ptr is not None:
        tl.store(partial_ptr + group * columns + column, tl.sum(total, axis=0), mask=inside)


def reference(x: torch.Tensor, bias: torch.Tensor | None = None, approximate: str = "none") -> torch.Tensor:
    """What :func:`gelu` computes, in plain torch: float32 inside for 16-bit types, float64 for float64."""
    return F.gelu(_sum(x, bias), approximate=approximate).to(x.dtype)


def gelu_forward(
    x_TF: torch.Tensor,
    *,
    bias_F: torch.Tensor | None = None,
    approximate: str = "none",
    out_TF: torch.Tensor | None = None,
) -> torch.Tensor:
    """gelu(x + bias), rounded once; ``out_TF`` may be ``x_TF`` itself. Rows of both may have any stride.

    Raises:
        ValueError: for an ``approximate`` that is neither ``none`` nor ``tanh``.
    """
    _check(approximate)
    out = output(out_TF, x_TF)
    if not x_TF.numel():
        return out
    if not uses_triton(x_TF):
        return out.copy_(reference(x_TF, bias_F, approximate))
    x, (rows, columns) = addressable(x_TF), x_TF.shape
    bias = None if bias_F is None else bias_F.contiguous()
    grid = (triton.cdiv(rows, _ROWS) * triton.cdiv(columns, _BLOCK),)
    _forward_kernel[grid](
        x, bias, out, rows, columns, x.stride(0), out.stride(0),
        TANH=approximate == "tanh", ROWS=_ROWS, BLOCK=_BLOCK,
    )  # fmt: skip
    return out


def gelu_backward(
    dy_TF: torch.Tensor,
    x_TF: torch.Tensor,
    *,
    bias_F: torch.Tensor | None = None,
    approximate: str = "none",
    bias_gradient: bool = False,
    out_TF: torch.Tensor | None = None,
    y_TF: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(dx_TF, dbias_F in float32 or None) of :func:`gelu_forward`.

    Args:
        dy_TF: gradient of the result.
        x_TF: the forward input, before the bias.
        bias_gradient: whether the bias' gradient is wanted; the same number in every run.
        out_TF: where dx goes; may be ``dy_TF`` or ``x_TF``.
        y_TF: if given, the forward result is written there in the same pass; may be ``dy_TF``.
    """
    _check(approximate)
    out = output(out_TF, x_TF)
    if not x_TF.numel():
        return out, x_TF.new_zeros(x_TF.shape[1], dtype=torch.float32) if bias_gradient else None
    y = None if y_TF is None else output(y_TF, x_TF)
    if not uses_triton(x_TF):
        return _reference_backward(dy_TF, x_TF, bias_F, approximate, bias_gradient, out, y)
    dy, x, (rows, columns) = addressable(dy_TF), addressable(x_TF), x_TF.shape
    bias = None if bias_F is None else bias_F.contiguous()
    steps = triton.cdiv(rows, _ROWS * _GROUPS) if bias_gradient else 1
    groups = triton.cdiv(rows, _ROWS * steps)
    partial = x.new_empty((groups, columns), dtype=torch.float32) if bias_gradient else None
    _backward_kernel[(groups * triton.cdiv(columns, _BLOCK),)](
        dy, x, bias, out, y, partial, rows, columns,
        dy.stride(0), x.stride(0), out.stride(0), 0 if y is None else y.stride(0), steps,
        TANH=approximate == "tanh", ROWS=_ROWS, BLOCK=_BLOCK,
    )  # fmt: skip
    return out, None if partial is None else partial.sum(0)


def gelu(x: torch.Tensor, bias: torch.Tensor | None = None, approximate: str = "none") -> torch.Tensor:
    """gelu(x + bias) of x (..., F) and bias (F,), differentiable in both.

    Raises:
        ValueError: for an ``approximate`` that is neither ``none`` nor ``tanh``.
    """
    y: torch.Tensor = _Gelu.apply(x.reshape(-1, x.shape[-1]), bias, approximate)
    return y.view(x.shape)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TF: torch.Tensor, bias_F: torch.Tensor | None, approximate: str) -> torch.Tensor:
        ctx.save_for_backward(x_TF, bias_F)
        ctx.approximate = approximate
        return gelu_forward(x_TF, bias_F=bias_F, approximate=approximate)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy_TF: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TF, bias_F = ctx.saved_tensors
        dx, dbias = gelu_backward(
            dy_TF, x_TF, bias_F=bias_F, approximate=ctx.approximate, bias_gradient=ctx.needs_input_grad[1]
        )
        return dx, None if dbias is None else dbias.to(bias_F.dtype), None


def _reference_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    approximate: str,
    bias_gradient: bool,
    out: torch.Tensor,
    y: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    z = _sum(x, bias)
    dx = torch.ops.aten.gelu_backward(dy.to(z.dtype), z, approximate=approximate)
    if y is not None:
        y.copy_(F.gelu(z, approximate=approximate))
    return out.copy_(dx), dx.sum(0) if bias_gradient else None


def _check(approximate: str) -> None:
    if approximate not in APPROXIMATIONS:
        raise ValueError(f"unknown approximation {approximate!r}; known are {', '.join(APPROXIMATIONS)}")


def _sum(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    wide = x.to(accumulation_type(x.dtype))
    return wide if bias is None else wide + bias


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)
    tokens, width = case.sizes["tokens"], case.sizes["width"]
    padding = case.sizes.get("padding", 0)
    x = torch.randn(tokens, width + padding, generator=generator, device=device).to(dtype)[:, :width]
    bias = torch.randn(width, generator=generator, device=device).to(dtype)
    return {"x": 3 * x if not padding else x, "bias": bias, "approximate": case.sizes["approximate"]}


def _traffic(inputs: Inputs) -> int:
    return 2 * bytes_of(inputs["x"])


_CASES = (
    Case("exact", {"tokens": 5, "width": 64, "approximate": "none"}),
    Case("tanh", {"tokens": 5, "width": 64, "approximate": "tanh"}),
    Case("odd", {"tokens": 7, "width": 1031, "approximate": "tanh"}),
    Case("strided", {"tokens": 9, "width": 40, "padding": 24, "approximate": "none"}),
    Case("empty", {"tokens": 0, "width": 40, "approximate": "none"}),
)
_TIMED = (
    Case("8b", {"tokens": 8192, "width": 14336, "approximate": "tanh"}),
    Case("0.6b", {"tokens": 8192, "width": 3072, "approximate": "none"}),
)
_ROW_STRIDES = {"rows": "i32", "columns": "i32", "x_row": "i32"}
_CONSTANTS = {"TANH": "constexpr", "ROWS": "constexpr", "BLOCK": "constexpr"}
_COMPILATIONS = tuple(
    compilation
    for tanh in (False, True)
    for compilation in (
        Compilation(
            _forward_kernel,
            {"x_ptr": "*T", "bias_ptr": "*T", "y_ptr": "*T", **_ROW_STRIDES, "y_row": "i32", **_CONSTANTS},
            {"TANH": tanh, "ROWS": _ROWS, "BLOCK": _BLOCK},
        ),
        Compilation(
            _backward_kernel,
            {
                **dict.fromkeys(("dy_ptr", "x_ptr", "bias_ptr", "dx_ptr", "y_ptr"), "*T"),
                "partial_ptr": "*fp32",
                **dict.fromkeys(("rows", "columns", "dy_row", "x_row", "dx_row", "y_row", "steps"), "i32"),
                **_CONSTANTS,
            },
            {"TANH": tanh, "ROWS": _ROWS, "BLOCK": _BLOCK},
        ),
    )
)
SPEC = KernelSpec(
    name="gelu",
    operation=gelu,
    reference=reference,
    inputs=_inputs,
    cases=_CASES,
    timed=_TIMED,
    tolerance={torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 5e-4},
    traffic=_traffic,
    backward_traffic=lambda inputs: 3 * bytes_of(inputs["x"]),
    differentiable=("x", "bias"),
    frozen=("bias",),
    compilations=_COMPILATIONS,
)
