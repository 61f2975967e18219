"""Triton functions of :mod:`whet.kernels.rms_norm`.

Legend: T rows, D width, P programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from .fp8_triton import quantize_tile
from .rows import row_tile
from .spec import Compilation


@triton.jit
def forward_kernel(
    X, R, W, Y, S, RSTD, Q, SCALE,
    x_stride, r_stride, y_stride, s_stride, T, D, eps, offset,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, NATIVE_FP8: tl.constexpr,
):  # fmt: skip
    """One program norms ``ROWS`` rows. R and S are None without a residual, Q and SCALE without FP8."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    there = row < T
    mask = there[:, None] & (column < D)
    row_64 = row.to(tl.int64)[:, None]
    weight = tl.load(W + column, mask=column < D, other=0.0)  # every load is in flight before the reduction
    x = tl.load(X + row_64 * x_stride + column, mask=mask, other=0.0).to(tl.float32)
    if R is not None:
        residual = tl.load(R + row_64 * r_stride + column, mask=mask, other=0.0).to(tl.float32)
        summed = (x + residual).to(S.dtype.element_ty)
        tl.store(S + row_64 * s_stride + column, summed, mask=mask)
        x = summed.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, axis=1) / D + eps)
    tl.store(RSTD + row, rstd, mask=there)
    y = (x * rstd[:, None] * (weight.to(tl.float32) + offset)).to(Y.dtype.element_ty)
    tl.store(Y + row_64 * y_stride + column, y, mask=mask)
    if Q is not None:
        bits, scale = quantize_tile(tl.where(mask, y.to(tl.float32), 0.0), NATIVE_FP8)
        tl.store(Q + row_64 * D + column, bits, mask=mask)
        tl.store(SCALE + row, scale, mask=there)


@triton.jit
def backward_kernel(
    DY, X, W, RSTD, RG, DX, DW,
    dy_stride, x_stride, rg_stride, dx_stride, T, D, offset, programs,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program takes every ``programs``-th tile of ``ROWS`` rows.

    RG is None without a residual gradient; DW (P, D) gets each program's sum of dy·x̂, unless None.
    """
    program = tl.program_id(0)
    column = tl.arange(0, COLUMNS)[None, :]
    weight = tl.load(W + column, mask=column < D, other=0.0).to(tl.float32) + offset
    dw = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for tile in range(program, tl.cdiv(T, ROWS), programs):
        row = tile * ROWS + tl.arange(0, ROWS)
        there = row < T
        mask = there[:, None] & (column < D)
        row_64 = row.to(tl.int64)[:, None]
        x = tl.load(X + row_64 * x_stride + column, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(DY + row_64 * dy_stride + column, mask=mask, other=0.0).to(tl.float32)
        rstd = tl.load(RSTD + row, mask=there, other=0.0)[:, None]
        if RG is not None:
            other = tl.load(RG + row_64 * rg_stride + column, mask=mask, other=0.0)
        x_hat = x * rstd
        g = dy * weight
        mean = tl.sum(g * x_hat, axis=1)[:, None] / D
        dx = rstd * (g - x_hat * mean)
        if RG is not None:
            dx += other.to(tl.float32)
        tl.store(DX + row_64 * dx_stride + column, dx.to(DX.dtype.element_ty), mask=mask)
        if DW is not None:
            dw += dy * x_hat
    if DW is not None:
        total = tl.sum(dw, axis=0, keep_dims=True)
        tl.store(DW + program.to(tl.int64) * D + column, total, mask=column < D)


_FORWARD = {
    **dict.fromkeys(("X", "R", "W", "Y", "S"), "*T"), "RSTD": "*fp32", "Q": "*u8", "SCALE": "*fp32",
    **dict.fromkeys(("x_stride", "r_stride", "y_stride", "s_stride", "T", "D"), "i32"),
    "eps": "fp32", "offset": "fp32",
}  # fmt: skip
_BACKWARD = {
    **dict.fromkeys(("DY", "X", "W", "RG", "DX"), "*T"), "RSTD": "*fp32", "DW": "*fp32",
    **dict.fromkeys(("dy_stride", "x_stride", "rg_stride", "dx_stride", "T", "D", "programs"), "i32"),
    "offset": "fp32",
}  # fmt: skip


def _compilation(
    function: Any, signature: Mapping[str, str], columns: int, least: int = 75, **constants: Any
) -> Compilation:
    tile = row_tile(columns)
    constants = {"ROWS": tile.rows, "COLUMNS": tile.columns, **constants}
    signature = {**signature, **dict.fromkeys(constants, "constexpr")}
    return Compilation(function, signature, constants, num_warps=tile.warps, least_capability=least)


COMPILATIONS = (
    _compilation(forward_kernel, _FORWARD, 4096, R=None, S=None, Q=None, SCALE=None, NATIVE_FP8=False),
    _compilation(forward_kernel, _FORWARD, 1024, NATIVE_FP8=False),
    _compilation(forward_kernel, _FORWARD, 4096, least=89, NATIVE_FP8=True),
    _compilation(backward_kernel, _BACKWARD, 4096, DW=None),
    _compilation(backward_kernel, _BACKWARD, 1024, RG=None),
)
