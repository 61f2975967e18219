"""Rows scaled to unit length, as embeddings are before they are compared.

    y = x · r        r = 1 / |x|        dx = r · (dy - y · (y · dy))

A row shorter than 1e-12 has no direction: it becomes zero and passes no gradient on. y is in fp32 whatever x
is, because similarities of 16-bit unit vectors are good to two digits only.

Legend: T rows, E embedding width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from .backend import uses_triton
from .rows import accumulation_type, addressable, row_tile
from .spec import Case, Compilation, Inputs, KernelSpec

SHORTEST = 1e-12


@triton.jit
def _normalize_rows(
    x, x_stride, y, lengths, rows, width, shortest, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """y = x / |x| and ``lengths`` = 1 / |x| of ROWS rows a program."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row[:, None] < rows) & (column[None, :] < width)
    values = tl.load(x + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(values * values, 1))
    inverse = tl.where(length > shortest, 1.0 / tl.maximum(length, shortest), 0.0)
    tl.store(lengths + row, inverse, mask=row < rows)
    tl.store(y + row[:, None] * width + column[None, :], values * inverse[:, None], mask=inside)


@triton.jit
def _normalize_rows_backward(
    dy, dy_stride, x, x_stride, lengths, factor, dx, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """dx of ROWS rows a program, times the number behind ``factor``."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row[:, None] < rows) & (column[None, :] < width)
    inverse = tl.load(lengths + row, mask=row < rows, other=0.0)[:, None]
    values = tl.load(x + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    given = tl.load(dy + row[:, None] * dy_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    unit = values * inverse
    along = tl.sum(unit * given, 1)[:, None]
    gradient = (given - unit * along) * inverse * tl.load(factor).to(tl.float32)
    tl.store(dx + row[:, None] * width + column[None, :], gradient.to(dx.dtype.element_ty), mask=inside)


def l2_normalize_forward(x_TE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows and 1 / |x| of every row, both fp32 (float64 for float64)."""
    x_TE = addressable(x_TE)
    rows, width = x_TE.shape
    wide = accumulation_type(x_TE.dtype)
    if not uses_triton(x_TE) or wide == torch.float64:
        length_T = torch.linalg.vector_norm(x_TE.to(wide), dim=1)
        inverse_T = (1 / length_T.clamp(min=SHORTEST)).where(length_T > SHORTEST, 0)
        return x_TE.to(wide) * inverse_T[:, None], inverse_T
    y_TE = torch.empty((rows, width), dtype=wide, device=x_TE.device)
    inverse_T = torch.empty(rows, dtype=wide, device=x_TE.device)
    if rows:
        tile = row_tile(width)
        _normalize_rows[(triton.cdiv(rows, tile.rows),)](
            x_TE, x_TE.stride(0), y_TE, inverse_T, rows, width, SHORTEST,
            ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.warps,
        )  # fmt: skip
    return y_TE, inverse_T


def l2_normalize_backward(
    dy_TE: torch.Tensor, x_TE: torch.Tensor, inverse_T: torch.Tensor, factor: torch.Tensor
) -> torch.Tensor:
    """dx in x's type, times the 0-d ``factor``."""
    dy_TE, x_TE = addressable(dy_TE), addressable(x_TE)
    rows, width = x_TE.shape
    if not uses_triton(x_TE) or inverse_T.dtype == torch.float64:
        y_TE = x_TE.to(inverse_T.dtype) * inverse_T[:, None]
        across_TE = dy_TE - y_TE * (y_TE * dy_TE).sum(1, keepdim=True)
        return (across_TE * inverse_T[:, None] * factor).to(x_TE.dtype)
    dx_TE = torch.empty((rows, width), dtype=x_TE.dtype, device=x_TE.device)
    if rows:
        tile = row_tile(width)
        _normalize_rows_backward[(triton.cdiv(rows, tile.rows),)](
            dy_TE, dy_TE.stride(0), x_TE, x_TE.stride(0), inverse_T, factor, dx_TE, rows, width,
            ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.warps,
        )  # fmt: skip
    return dx_TE


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TE: torch.Tensor) -> torch.Tensor:
        y_TE, inverse_T = l2_normalize_forward(x_TE)
        ctx.save_for_backward(x_TE, inverse_T)
        return y_TE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TE: torch.Tensor) -> torch.Tensor:
        x_TE, inverse_T = ctx.saved_tensors
        return l2_normalize_backward(dy_TE, x_TE, inverse_T, inverse_T.new_ones(()))


def l2_normalize(x_TE: torch.Tensor) -> torch.Tensor:
    """Rows of ``x_TE`` at unit length, fp32 (T, E) (float64 for float64); differentiable."""
    return _Normalize.apply(x_TE)


def reference(x_TE: torch.Tensor) -> torch.Tensor:
    """The same by :func:`torch.nn.functional.normalize`."""
    return torch.nn.functional.normalize(x_TE.to(accumulation_type(x_TE.dtype)), dim=1, eps=SHORTEST)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    rows, width = case.sizes["rows"], case.sizes["width"]
    generator = torch.Generator(device).manual_seed(seed)
    return {"x_TE": torch.randn(rows, width + 8, generator=generator, device=device).to(dtype)[:, :width]}


SPEC = KernelSpec(
    name="l2_normalize",
    operation=l2_normalize,
    reference=reference,
    inputs=_inputs,
    cases=tuple(
        Case(name, {"rows": rows, "width": width})
        for name, rows, width in (("even", 16, 64), ("odd", 7, 385), ("wide", 2, 4099), ("empty", 0, 32))
    ),
    timed=(Case("minilm", {"rows": 8192, "width": 384}), Case("bge_m3", {"rows": 8192, "width": 1024})),
    tolerance={torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4},
    traffic=lambda inputs: inputs["x_TE"].numel() * (inputs["x_TE"].element_size() + 4),
    backward_traffic=lambda inputs: inputs["x_TE"].numel() * (2 * inputs["x_TE"].element_size() + 4),
    differentiable=("x_TE",),
    compilations=(
        Compilation(
            _normalize_rows,
            {"x": "*T", "x_stride": "i32", **dict.fromkeys(("y", "lengths"), "*fp32"), "rows": "i32",
             "width": "i32", "shortest": "fp32", "ROWS": "constexpr", "COLUMNS": "constexpr"},
            {"ROWS": 4, "COLUMNS": 1024},
            num_warps=8,
        ),
        Compilation(
            _normalize_rows_backward,
            {"dy": "*fp32", "dy_stride": "i32", "x": "*T", "x_stride": "i32", "lengths": "*fp32",
             "factor": "*fp32", "dx": "*T", "rows": "i32", "width": "i32", "ROWS": "constexpr",
             "COLUMNS": "constexpr"},
            {"ROWS": 4, "COLUMNS": 1024},
            num_warps=8,
        ),
    ),
)  # fmt: skip
