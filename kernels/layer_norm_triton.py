"""Triton functions of :mod:`whet.kernels.layer_norm`.

Legend: T rows, D width, P programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from .rows import Tile, row_tile
from .spec import Compilation


@triton.jit
def forward_kernel(
    X, R, W, B, Y, S, MEAN, RSTD,
    x_stride, r_stride, y_stride, s_stride, T, D, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program norms ``ROWS`` rows. R and S are None without a residual, B without a bias."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    there = row < T
    inside = column < D
    mask = there[:, None] & inside
    row_64 = row.to(tl.int64)[:, None]
    weight = tl.load(W + column, mask=inside, other=0.0)  # every load is in flight before the reductions
    if B is not None:
        bias = tl.load(B + column, mask=inside, other=0.0)
    x = tl.load(X + row_64 * x_stride + column, mask=mask, other=0.0).to(tl.float32)
    if R is not None:
        residual = tl.load(R + row_64 * r_stride + column, mask=mask, other=0.0).to(tl.float32)
        summed = (x + residual).to(S.dtype.element_ty)
        tl.store(S + row_64 * s_stride + column, summed, mask=mask)
        x = summed.to(tl.float32)
    mean = tl.sum(x, axis=1) / D
    centred = tl.where(inside, x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / D + eps)
    tl.store(MEAN + row, mean, mask=there)
    tl.store(RSTD + row, rstd, mask=there)
    y = centred * rstd[:, None] * weight.to(tl.float32)
    if B is not None:
        y += bias.to(tl.float32)
    tl.store(Y + row_64 * y_stride + column, y.to(Y.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    DY, MORE, X, W, MEAN, RSTD, RG, DX, DW, DB,
    dy_stride, more_stride, x_stride, rg_stride, dx_stride, T, D, programs,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program takes every ``programs``-th tile of ``ROWS`` rows.

    MORE is None, or a second gradient of y. RG is None without a residual gradient. DW and DB (P, D) get each
    program's sums of dy·x̂ and dy, unless both are None.
    """
    program = tl.program_id(0)
    column = tl.arange(0, COLUMNS)[None, :]
    inside = column < D
    weight = tl.load(W + column, mask=inside, other=0.0).to(tl.float32)
    if DW is not None:
        dw = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        db = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for tile in range(program, tl.cdiv(T, ROWS), programs):
        row = tile * ROWS + tl.arange(0, ROWS)
        there = row < T
        mask = there[:, None] & inside
        row_64 = row.to(tl.int64)[:, None]
        x = tl.load(X + row_64 * x_stride + column, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(DY + row_64 * dy_stride + column, mask=mask, other=0.0).to(tl.float32)
        if MORE is not None:
            dy += tl.load(MORE + row_64 * more_stride + column, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(MEAN + row, mask=there, other=0.0)[:, None]
        rstd = tl.load(RSTD + row, mask=there, other=0.0)[:, None]
        if RG is not None:
            other = tl.load(RG + row_64 * rg_stride + column, mask=mask, other=0.0)
        x_hat = (x - mean) * rstd
        g = dy * weight
        mean_g = tl.sum(g, axis=1)[:, None] / D
        mean_gx = tl.sum(g * x_hat, axis=1)[:, None] / D
        dx = rstd * (g - mean_g - x_hat * mean_gx)
        if RG is not None:
            dx += other.to(tl.float32)
        tl.store(DX + row_64 * dx_stride + column, dx.to(DX.dtype.element_ty), mask=mask)
        if DW is not None:
            dw += dy * x_hat
            db += dy
    if DW is not None:
        place = program.to(tl.int64) * D + column
        tl.store(DW + place, tl.sum(dw, axis=0, keep_dims=True), mask=inside)
        tl.store(DB + place, tl.sum(db, axis=0, keep_dims=True), mask=inside)


_FORWARD = {
    **dict.fromkeys(("X", "R", "W", "B", "Y", "S"), "*T"), "MEAN": "*fp32", "RSTD": "*fp32",
    **dict.fromkeys(("x_stride", "r_stride", "y_stride", "s_stride", "T", "D"), "i32"), "eps": "fp32",
}  # fmt: skip
_BACKWARD = {
    **dict.fromkeys(("DY", "MORE", "X", "W", "RG", "DX"), "*T"),
    **dict.fromkeys(("MEAN", "RSTD", "DW", "DB"), "*fp32"),
    **dict.fromkeys(("dy_stride", "more_stride", "x_stride", "rg_stride", "dx_stride"), "i32"),
    **dict.fromkeys(("T", "D", "programs"), "i32"),
}


def backward_tile(width: int, sums: bool) -> Tile:
    """The tile of a program backward, which sums over rows or not.

    Where it does not and has several rows, half of :func:`.rows.row_tile`'s: two reductions a row make warps
    wait for each other, four warps less than eight. Where it does, a program stays for many rows.
    """
    tile = row_tile(width)
    return tile if sums or tile.rows == 1 else tile._replace(rows=tile.rows // 2, warps=tile.warps // 2)


def _compilation(function: Any, signature: Mapping[str, str], columns: int, **constants: Any) -> Compilation:
    backward = function is backward_kernel
    tile = backward_tile(columns, "DW" not in constants) if backward else row_tile(columns)
    constants = {"ROWS": tile.rows, "COLUMNS": tile.columns, **constants}
    signature = {**signature, **dict.fromkeys(constants, "constexpr")}
    return Compilation(function, signature, constants, num_warps=tile.warps)


COMPILATIONS = (
    _compilation(forward_kernel, _FORWARD, 4096),
    _compilation(forward_kernel, _FORWARD, 768, R=None, S=None, B=None),
    _compilation(backward_kernel, _BACKWARD, 4096, MORE=None, DW=None, DB=None),
    _compilation(backward_kernel, _BACKWARD, 768, MORE=None, RG=None),
    _compilation(backward_kernel, _BACKWARD, 1024, RG=None, DW=None, DB=None),
)
