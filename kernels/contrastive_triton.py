"""The Triton functions of :mod:`whet.kernels.contrastive`, and their tiles."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .attention_choice import Capability
from .backend import uses_triton
from .descriptors import ProductTile
from .grouped_gemm_triton import rounded
from .l2_normalize import SHORTEST
from .rows import accumulation_type
from .spec import Compilation

LOG2_E = tl.constexpr(1.4426950408889634)
GROUP = 8
"""Row tiles that take a column tile one after the other, so that both sides stay in the cache."""


@triton.jit
def inverse_lengths_kernel(
    x, x_row, inverses, rows, width, shortest, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """1 / |x| of ROWS rows a program; 0 for a row no longer than ``shortest``."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    squares = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        value = tl.load(x + row[:, None] * x_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
        squares += value * value
    length = tl.sqrt(tl.sum(squares, 1))
    inverse = tl.where(length > shortest, 1.0 / tl.maximum(length, shortest), 0.0)
    tl.store(inverses + row, inverse, mask=row < rows)


def inverse_lengths(x_TE: torch.Tensor, normalize: bool) -> torch.Tensor:
    """1 / |x| of every row, 0 without direction; 1 where lengths stay."""
    wide = accumulation_type(x_TE.dtype)
    rows, width = x_TE.shape
    if not normalize:
        return torch.ones(rows, dtype=wide, device=x_TE.device)
    if not uses_triton(x_TE) or wide == torch.float64:
        length_T = torch.linalg.vector_norm(x_TE, dim=1, dtype=wide)
        return (1 / length_T.clamp(min=SHORTEST)).where(length_T > SHORTEST, 0)
    inverse_T = torch.empty(rows, dtype=wide, device=x_TE.device)
    if rows:
        block = min(1024, triton.next_power_of_2(width))
        inverse_lengths_kernel[(triton.cdiv(rows, 4),)](
            x_TE, x_TE.stride(0), inverse_T, rows, width, SHORTEST, ROWS=4, BLOCK=block, num_warps=4
        )
    return inverse_T


@triton.jit
def _tile_of(rows, columns, GROUP: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr):
    """Row and column tile of this program."""
    down, across = tl.cdiv(rows, TILE_M), tl.cdiv(columns, TILE_N)
    program = tl.program_id(0) % (GROUP * across)
    first = tl.program_id(0) // (GROUP * across) * GROUP
    height = tl.minimum(GROUP, down - first)
    return first + program % height, program // height


@triton.jit
def _products(
    a, c, row, column, first_row, first_column, a_row, c_row, E, TILE_M: tl.constexpr, TILE_N: tl.constexpr,
    TILE_E: tl.constexpr, EVEN: tl.constexpr, DESCRIBED: tl.constexpr, PRECISION: tl.constexpr,
    CAST: tl.constexpr,
):  # fmt: skip
    """a_row · c_column of a tile, added up in fp32: exact products of 16-bit numbers."""
    sum_ = tl.zeros((TILE_M, TILE_N), tl.float32)
    e = tl.arange(0, TILE_E)
    if not DESCRIBED:
        a += row.to(tl.int64)[:, None] * a_row + e[None, :]
        c += column.to(tl.int64)[None, :] * c_row + e[:, None]
    for start in range(0, E, TILE_E):
        if DESCRIBED:
            a_tile = a.load([first_row, start])
            c_tile = c.load([first_column, start]).T
        elif EVEN:
            a_tile = tl.load(a)
            c_tile = tl.load(c)
        else:
            a_tile = tl.load(a, mask=(e < E - start)[None, :], other=0.0)
            c_tile = tl.load(c, mask=(e < E - start)[:, None], other=0.0)
        if CAST:
            a_tile = a_tile.to(tl.float32)
            c_tile = c_tile.to(tl.float32)
        sum_ = tl.dot(a_tile, c_tile, sum_, input_precision=PRECISION)
        if not DESCRIBED:
            a += TILE_E
            c += TILE_E
    return sum_


@triton.jit
def _log_mass(z, axis: tl.constexpr):
    """log Σ exp along ``axis`` of logits to base 2."""
    top = tl.max(z, axis)
    return (top + tl.log2(tl.sum(tl.exp2(z - tl.expand_dims(top, axis)), axis))) / LOG2_E


@triton.jit
def similarity_sums_kernel(
    a, c, a_inverse, c_inverse, labels, row_parts, column_parts, positive, scale, B, C, E, a_row, c_row,
    GROUP: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_E: tl.constexpr, EVEN: tl.constexpr,
    DESCRIBED: tl.constexpr, SYMMETRIC: tl.constexpr, PRECISION: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    """Of one tile of logits: log Σ exp of each row into ``row_parts`` (column tiles, B), of each column into
    ``column_parts`` (row tiles, C), and the logits of the labels that lie in it.
    """
    i, j = _tile_of(B, C, GROUP, TILE_M, TILE_N)
    rows = i * TILE_M + tl.arange(0, TILE_M)
    columns = j * TILE_N + tl.arange(0, TILE_N)
    # Behind the last row and column the last one is read again: no mask in the loop.
    row, column = tl.minimum(rows, B - 1), tl.minimum(columns, C - 1)
    sum_ = _products(
        a, c, row, column, i * TILE_M, j * TILE_N, a_row, c_row, E, TILE_M, TILE_N, TILE_E,
        EVEN, DESCRIBED, PRECISION, CAST,
    )  # fmt: skip
    z = sum_ * (tl.load(a_inverse + row) * (scale * LOG2_E))[:, None] * tl.load(c_inverse + column)[None, :]
    label = tl.load(labels + row).to(tl.int32)
    chosen = tl.sum(tl.where(columns[None, :] == label[:, None], z, 0.0), 1)
    here = (label >= j * TILE_N) & (label < tl.minimum((j + 1) * TILE_N, C))
    tl.store(positive + rows, chosen / LOG2_E, mask=here & (rows < B))
    mass = _log_mass(tl.where((columns < C)[None, :], z, float("-inf")), 1)
    tl.store(row_parts + j.to(tl.int64) * B + rows, mass, mask=rows < B)
    if SYMMETRIC:
        mass = _log_mass(tl.where((rows < B)[:, None], z, float("-inf")), 0)
        tl.store(column_parts + i.to(tl.int64) * C + columns, mass, mask=columns < C)


@triton.jit
def combine_kernel(parts, out, count, width, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """out = log Σ exp of ``parts`` (count, width) over the first dimension."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.minimum(columns, width - 1)
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, PARTS):
        part = start + tl.arange(0, PARTS)
        at = parts + part.to(tl.int64)[:, None] * width + column[None, :]
        value = tl.load(at, mask=(part < count)[:, None], other=float("-inf"))
        above = tl.maximum(top, tl.max(value, 0))
        mass = mass * tl.exp(top - above) + tl.sum(tl.exp(value - above[None, :]), 0)
        top = above
    tl.store(out + columns, top + tl.log(mass), mask=columns < width)


def combined(parts_PT: torch.Tensor) -> torch.Tensor:
    """log Σ exp of every column."""
    out_T = parts_PT.new_empty(parts_PT.shape[1])
    if out_T.numel():
        combine_kernel[(triton.cdiv(len(out_T), 32),)](
            parts_PT, out_T, *parts_PT.shape, PARTS=32, BLOCK=32, num_warps=4
        )
    return out_T


@triton.jit
def _store_gradient(
    sum_, row, columns, known, C, a_inverse, c_inverse, label, row_lse, column_lse, out, term, scale, share,
    SYMMETRIC: tl.constexpr, TERMS: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    inside = known & (columns < C)[None, :]
    out += columns[None, :]
    column = tl.minimum(columns, C - 1)
    lengths = tl.load(a_inverse + row)[:, None] * tl.load(c_inverse + column)[None, :]
    z = sum_ * lengths * (scale * LOG2_E)
    gradient = tl.exp2(z - (tl.load(row_lse + row) * LOG2_E)[:, None])
    if SYMMETRIC:
        gradient += tl.exp2(z - (tl.load(column_lse + column) * LOG2_E)[None, :])
    gradient = (gradient - tl.where(columns[None, :] == label[:, None], share, 0.0)) * lengths
    for _ in tl.static_range(TERMS):
        part = rounded(gradient, out.dtype.element_ty, CAST)
        tl.store(out, part, mask=inside)
        gradient -= part.to(tl.float32)
        out += term


@triton.jit
def similarity_gradient_kernel(
    a, c, a_inverse, c_inverse, labels, row_lse, column_lse, out, scale, share, first, last, C, E, a_row,
    c_row, out_row, term, GROUP: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr,
    TILE_E: tl.constexpr, EVEN: tl.constexpr, DESCRIBED: tl.constexpr, SYMMETRIC: tl.constexpr,
    TERMS: tl.constexpr, PRECISION: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    """Logits of rows ``first`` to ``last`` once more, and what their gradient is times both inverse lengths:
    the sum of TERMS matrices of out's type, ``term`` elements apart. Offsets in one of them fit into 32 bits.
    """
    i, j = _tile_of(last - first, C, GROUP, TILE_M, TILE_N)
    rows = first + i * TILE_M + tl.arange(0, TILE_M)
    row = tl.minimum(rows, last - 1)
    columns = j * TILE_N + tl.arange(0, TILE_N)
    column = tl.minimum(columns, C - 1)
    sum_ = _products(
        a, c, row, column, first + i * TILE_M, j * TILE_N, a_row, c_row, E, TILE_M, TILE_N, TILE_E,
        EVEN, DESCRIBED, PRECISION, CAST,
    )  # fmt: skip
    label = tl.load(labels + row).to(tl.int32)
    at = out + (rows - first)[:, None] * out_row
    known = (rows < last)[:, None]
    if TILE_N == 256:
        # One half after the other: the gradients of all of the tile would not fit into registers.
        HALF: tl.constexpr = TILE_N // 2
        left, right = tl.split(tl.permute(tl.reshape(sum_, (TILE_M, 2, HALF)), (0, 2, 1)))
        columns = j * TILE_N + tl.arange(0, HALF)
        _store_gradient(
            left, row, columns, known, C, a_inverse, c_inverse, label, row_lse, column_lse, at, term, scale,
            share, SYMMETRIC, TERMS, CAST,
        )  # fmt: skip
        _store_gradient(
            right, row, columns + HALF, known, C, a_inverse, c_inverse, label, row_lse, column_lse, at, term,
            scale, share, SYMMETRIC, TERMS, CAST,
        )  # fmt: skip
    else:
        _store_gradient(
            sum_, row, columns, known, C, a_inverse, c_inverse, label, row_lse, column_lse, at, term, scale,
            share, SYMMETRIC, TERMS, CAST,
        )  # fmt: skip


def similarity_tile(
    rows: int, columns: int, dtype: torch.dtype, capability: Capability, described: bool
) -> ProductTile:
    """Large tiles where there are enough of them for all processors of a large GPU; the largest only where
    its operands need no addresses. On sm_100 addresses and masks beside the sums of a square one spill."""
    if capability is not None and capability < (8, 0):  # no tensor cores
        return ProductTile(64, 64, 16, 4, 2)
    if dtype == torch.float32:  # three products of tf32 parts
        return ProductTile(128, 128 if capability == (9, 0) else 64, 32, 8, 3)
    if not described and capability is not None and (10, 0) <= capability < (12, 0):
        return ProductTile(64, 128, 64, 8, 3)
    if described and capability == (9, 0) and rows * columns >= 128 * 256 * 132:
        return ProductTile(128, 256, 64, 8, 4)
    return (
        ProductTile(128, 128, 64, 8, 3) if rows * columns >= 128 * 128 * 64 else ProductTile(64, 64, 64, 4, 3)
    )


def compilations() -> tuple[Compilation, ...]:
    """The kernels at BGE-M3's width, from 16-bit and fp32 embeddings; from sm_90 on also at a width that
    neither a copy engine nor the tile's depth fits, from 16-bit ones."""
    floats = ("a_inverse", "c_inverse", "row_parts", "column_parts", "positive", "row_lse", "column_lse")
    numbers = ("B", "C", "E", "a_row", "c_row", "first", "last", "out_row", "term")
    kinds = dict.fromkeys(floats, "*fp32") | dict.fromkeys(numbers, "i32")
    kinds |= {"labels": "*i64", "scale": "fp32", "share": "fp32"}
    found = []
    for element, described, capability, most in (
        ("*T", False, 75, 75), ("*T", False, 80, 89), ("*T", True, 90, 90), ("*T", True, 100, 120),
        ("*T", False, 90, 90), ("*T", False, 100, 119), ("*T", False, 120, 120),
        ("*fp32", False, 75, 75), ("*fp32", False, 80, 89),
        ("*fp32", True, 90, 90), ("*fp32", True, 100, 120),
    ):  # fmt: skip
        wide, even = element == "*fp32", described or capability < 90
        dtype = torch.float32 if wide else torch.bfloat16
        tile = similarity_tile(8192, 16384, dtype, divmod(capability, 10), described)
        constants: dict[str, Any] = {"GROUP": GROUP, "TILE_M": tile.rows, "TILE_N": tile.columns}
        constants |= {"TILE_E": tile.depth, "EVEN": even, "DESCRIBED": described, "SYMMETRIC": True}
        constants |= {"PRECISION": "tf32x3" if wide and capability >= 80 else "ieee", "CAST": False}
        signature = kinds | {"out": "*fp32" if capability < 80 else "*bf16"} | dict.fromkeys("ac", element)
        if described:
            inside = "fp32" if wide else "bf16"
            signature["a"] = f"tensordesc<{inside}[{tile.rows}, {tile.depth}]>"
            signature["c"] = f"tensordesc<{inside}[{tile.columns}, {tile.depth}]>"
        for kernel in (similarity_sums_kernel, similarity_gradient_kernel):
            chosen = constants
            if kernel is similarity_gradient_kernel:
                chosen = constants | {"TERMS": 1 if capability < 80 else 2}
            taken = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
            found.append(Compilation(kernel, taken, chosen, tile.warps, tile.stages, capability, most))
    parts = {"parts": "*fp32", "out": "*fp32", "count": "i32", "width": "i32"}
    lengths = {
        "x": "*T",
        "x_row": "i32",
        "inverses": "*fp32",
        "rows": "i32",
        "width": "i32",
        "shortest": "fp32",
    }
    for kernel, signature, constants in (
        (combine_kernel, parts, {"PARTS": 32, "BLOCK": 32}),
        (inverse_lengths_kernel, lengths, {"ROWS": 4, "BLOCK": 1024}),
    ):
        signature = signature | dict.fromkeys(constants, "constexpr")
        found.append(Compilation(kernel, signature, constants))
    return tuple(found)
