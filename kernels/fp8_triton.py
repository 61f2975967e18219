"""Triton functions of :mod:`whet.kernels.fp8`, and the two that other kernels quantise their output with.

Legend: T rows, K columns, N output features.
"""

# Tuples grow where Triton unrolls a loop.
# mypy: disable-error-code="assignment"

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import triton
import triton.language as tl

from .rows import row_tile
from .spec import Compilation

E4M3_MAX = 448.0
LEAST_SCALE = 2.0**-100  # its reciprocal is finite
PIECE = 256  # columns a warp and piece where columns have scales: one 16-byte access a thread
PIECES = 7  # which, with their scales, take 112 of the 128 registers that each thread of 16 warps can have
RESIDENT_WARPS = 16
WIDE_SCALED = PIECES * PIECE * RESIDENT_WARPS  # columns
ROWS_AHEAD = 2  # of a program; a third is not faster
WIDE = 2**15  # columns; a program's registers hold no more, with what goes on beside them
WIDE_BLOCK, WIDE_WARPS = 8192, 16
TILE = 32  # words of 4 bytes: 128 bytes a row, a whole line of the cache
_LARGEST = tl.constexpr(E4M3_MAX)
_LEAST = tl.constexpr(LEAST_SCALE)


@triton.jit
def e4m3_bits(x, NATIVE: tl.constexpr):
    """fp32 to the bits of e4m3, round to nearest even, saturating, NaN kept."""
    if NATIVE:
        return x.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        size = tl.minimum(tl.where(x == x, tl.abs(x), 0.0), _LARGEST)
        # Normal numbers: round the mantissa to three bits, then rebias the exponent from 127 to 7.
        bits = size.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
        # Below 2^-6 the step is 2^-9, which is the last place of fp32 numbers near 2^14.
        small = (size + 16384.0).to(tl.int32, bitcast=True) & 0xF
        code = tl.where(size < 0.015625, small, normal)
        code = tl.where(x == x, code, 0x7F)
        return (code | ((x.to(tl.int32, bitcast=True) >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def _size(x):
    return tl.where(x == x, tl.abs(x), 0.0)


@triton.jit
def _scale_of(largest):
    scale = tl.maximum(tl.math.div_rn(largest, _LARGEST), _LEAST)
    return tl.where(largest > 0.0, scale, 1.0)


@triton.jit
def quantize_tile(x, NATIVE: tl.constexpr):
    """(bits of e4m3, scale a row) of a tile of whole rows; what is beyond a row's end must be zero."""
    scale = _scale_of(tl.max(_size(x), axis=1))
    return e4m3_bits(x * tl.math.div_rn(1.0, scale)[:, None], NATIVE), scale


@triton.jit
def quantize_kernel(
    X, Q, SCALE, x_stride, q_stride, T, K,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """One program quantises ``ROWS`` rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    there = row < T
    mask = there[:, None] & (column < K)
    row_64 = row.to(tl.int64)[:, None]
    x = tl.load(X + row_64 * x_stride + column, mask=mask, other=0.0).to(tl.float32)
    bits, scale = quantize_tile(x, NATIVE)
    tl.store(Q + row_64 * q_stride + column, bits, mask=mask)
    tl.store(SCALE + row, scale, mask=there)


@triton.jit
def quantize_columns_kernel(
    X, C, Q, SCALE, x_stride, q_stride, T, K, programs,
    PIECES: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Rows times C, one a turn, while the next ones come into shared memory.

    Registers hold C throughout and a row's products until its scale is known, in pieces: a row in one would
    take up a power of two. The maximum passes over NaN.
    """
    column = tl.arange(0, COLUMNS)
    scales = ()
    for i in tl.static_range(PIECES):
        at = i * COLUMNS + column
        scales += (tl.load(C + at, mask=at < K, other=0.0).to(tl.float32),)
    first = tl.program_id(0).to(tl.int64)
    for turn in tl.range(0, tl.cdiv(T - first, programs), num_stages=STAGES):
        row = first + turn * programs
        products = ()
        largest = tl.zeros((COLUMNS,), tl.float32)
        for i in tl.static_range(PIECES):
            at = i * COLUMNS + column
            x = tl.load(X + row * x_stride + at, mask=at < K, other=0.0).to(tl.float32) * scales[i]
            largest = tl.maximum(largest, tl.abs(x))
            products += (x,)
        scale = _scale_of(tl.max(largest, axis=0))
        inverse = tl.math.div_rn(1.0, scale)
        for i in tl.static_range(PIECES):
            at = i * COLUMNS + column
            tl.store(Q + row * q_stride + at, e4m3_bits(products[i] * inverse, NATIVE), mask=at < K)
        tl.store(SCALE + row, scale)


@triton.jit
def _wide_part(X, C, start, K, BLOCK: tl.constexpr):
    """Columns, whether they are there, and what is in them, times C unless that is None."""
    column = start + tl.arange(0, BLOCK)
    x = tl.load(X + column, mask=column < K, other=0.0).to(tl.float32)
    if C is not None:
        x *= tl.load(C + column, mask=column < K, other=0.0, eviction_policy="evict_last").to(tl.float32)
    return column, column < K, x


@triton.jit
def quantize_wide_kernel(
    X, C, Q, SCALE, x_stride, q_stride, K, BLOCK: tl.constexpr, NATIVE: tl.constexpr
):  # fmt: skip
    """A row that no program's registers hold: the largest number first, then all again from the cache."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        _, _, x = _wide_part(X + row * x_stride, C, start, K, BLOCK)
        largest = tl.maximum(largest, _size(x))
    scale = _scale_of(tl.max(largest, axis=0))
    for start in range(0, K, BLOCK):
        column, there, x = _wide_part(X + row * x_stride, C, start, K, BLOCK)
        bits = e4m3_bits(x * tl.math.div_rn(1.0, scale), NATIVE)
        tl.store(Q + row * q_stride + column, bits, mask=there)
    tl.store(SCALE + row, scale)


@triton.jit
def transpose_kernel(W, OUT, w_stride, out_stride, N, K, TILE: tl.constexpr):
    """Transpose ``TILE`` x ``TILE`` words: their 4 bytes change places in registers, words in shared memory.

    W is (N, K / 4) and OUT (K, N / 4) in words; the strides are in words, N and K in bytes.
    """
    n = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    k = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = (n < N // 4)[:, None] & (k < K // 4)[None, :]
    source = W + n[:, None] * (4 * w_stride) + k[None, :]
    a = tl.load(source, mask=mask, other=0)
    b = tl.load(source + w_stride, mask=mask, other=0)
    c = tl.load(source + 2 * w_stride, mask=mask, other=0)
    d = tl.load(source + 3 * w_stride, mask=mask, other=0)
    mask = tl.trans(mask)
    target = OUT + k[:, None] * (4 * out_stride) + n[None, :]
    for byte in tl.static_range(4):
        word = _byte(a, byte) | (_byte(b, byte) << 8) | (_byte(c, byte) << 16) | (_byte(d, byte) << 24)
        tl.store(target + byte * out_stride, tl.trans(word), mask=mask)


@triton.jit
def _byte(word, index: tl.constexpr):
    return (word >> (8 * index)) & 0xFF


_QUANTIZE = {
    "X": "*T", "Q": "*u8", "SCALE": "*fp32", **dict.fromkeys(("x_stride", "q_stride", "T", "K"), "i32")
}  # fmt: skip
_TRANSPOSE = {"W": "*i32", "OUT": "*i32", **dict.fromkeys(("w_stride", "out_stride", "N", "K"), "i32")}


def _quantization(columns: int, least: int = 75, **constants: Any) -> Compilation:
    tile = row_tile(columns)
    constants = {"ROWS": tile.rows, "COLUMNS": tile.columns, **constants}
    return _compilation(quantize_kernel, _QUANTIZE, constants, tile.warps, least)


def _compilation(
    function: Any, signature: Mapping[str, str], constants: Mapping[str, Any], warps: int, least: int = 75
) -> Compilation:
    signature = {**signature, **dict.fromkeys(constants, "constexpr")}
    return Compilation(function, signature, constants, num_warps=warps, least_capability=least)


class ScaledRow(NamedTuple):
    """Pieces of a row whose columns have scales, columns of a piece, warps of a program."""

    pieces: int
    columns: int
    warps: int


def scaled_row(columns: int) -> ScaledRow:
    """For rows of up to :data:`WIDE_SCALED` columns: as few warps as hold them."""
    warps = triton.next_power_of_2(triton.cdiv(columns, PIECES * PIECE))
    return ScaledRow(triton.cdiv(columns, warps * PIECE), warps * PIECE, warps)


def stages_of(row: ScaledRow, element_size: int, shared_memory: int) -> int:
    """One, and one for each row that a processor's shared memory takes ahead for all of its programs."""
    ahead = row.pieces * row.columns * element_size * (RESIDENT_WARPS // row.warps)
    return 1 + min(ROWS_AHEAD, shared_memory // ahead)


def _scaled(columns: int, kilobytes: int, least: int, most: int = 120) -> Compilation:
    row = scaled_row(columns)
    constants = {"PIECES": row.pieces, "COLUMNS": row.columns, "NATIVE": least >= 89}
    constants["STAGES"] = stages_of(row, 2, kilobytes * 1024)
    types = {**_QUANTIZE, "C": "*fp32", "programs": "i32"}
    wanted = _compilation(quantize_columns_kernel, types, constants, row.warps, least)
    return replace(wanted, most_capability=most)


def _wide(native: bool, **more: None) -> Compilation:
    types = {name: kind for name, kind in _QUANTIZE.items() if name != "T"} | {"C": "*fp32"}
    constants = {"BLOCK": WIDE_BLOCK, "NATIVE": native, **more}
    return _compilation(quantize_wide_kernel, types, constants, WIDE_WARPS, 89 if native else 75)


COMPILATIONS = (
    _quantization(14336, NATIVE=False),
    _quantization(1024, least=89, NATIVE=True),
    _scaled(1024, 64, least=75),
    _scaled(4096, 227, least=90, most=100),
    _scaled(14336, 227, least=90, most=100),
    _scaled(28672, 227, least=90, most=100),
    _scaled(28672, 163, least=80, most=80),
    _scaled(28672, 99, least=89),
    _wide(native=True),
    _wide(native=False, C=None),
    _compilation(transpose_kernel, _TRANSPOSE, {"TILE": TILE}, 4),
)
