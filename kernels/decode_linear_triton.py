"""Triton functions of :mod:`whet.kernels.decode_linear`, their tiles and ahead-of-time compilations.

Legend: B rows, K inputs, N outputs, R ranks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .attention_choice import nvidia_capability
from .nf4 import block_scale, look_up, read_code
from .spec import Compilation

MOST_ROWS = 16
"""Rows of x that the NF4 kernel takes: one tile of a tensor core's product."""
FEW_OUTPUTS = 512
"""Weights with fewer, LoRA's A above all, are multiplied with several rows of x one by one."""


class Tile(NamedTuple):
    """Rows of W a program, columns or words of 8 codes a step, warps. Found by trying, on an H200."""

    outputs: int
    step: int
    warps: int


def nf4_tile(inputs: int) -> Tile:
    """For one row of x: one warp, which waits for no other when it looks codes up."""
    return Tile(1, 128, 1) if inputs >= 3072 else Tile(4, 32, 1)


def dense_tile(outputs: int, inputs: int, bytes_each: int) -> Tile:
    """For one row of x: programs to fill a GPU, then bytes to fill a program."""
    if outputs < FEW_OUTPUTS:  # few long rows
        return Tile(1, min(4096, triton.next_power_of_2(inputs)), 8)
    if inputs >= 8192:
        return Tile(1, 2048, 4) if bytes_each > 1 else Tile(4, 1024, 2)
    if bytes_each > 1 and inputs >= 4096:
        return Tile(2, 2048, 4)
    many = outputs >= (4096 if bytes_each > 1 else 6144)
    rows = 8 if bytes_each == 1 and outputs >= 16384 else 4 if many else 2
    return Tile(rows, min(1024, triton.next_power_of_2(inputs)), 4)


def rows_tile(outputs: int, device: torch.device) -> Tile:
    """For several rows of x; products before capability 8.0 run in registers."""
    capability = nvidia_capability(device)
    if capability is not None and capability < (8, 0):
        return Tile(16, 8, 4)
    return Tile(32, 32, 4) if outputs >= 16384 else Tile(16, 64, 4)


@triton.jit
def _update(total, n, t, sb, bias, sb_row, N, RANK: tl.constexpr, RANKS: tl.constexpr):
    """The sums of outputs ``n`` with the LoRA update and the bias of one row of x."""
    if RANK:
        rank = tl.arange(0, RANKS)
        here = (n < N)[:, None] & (rank < RANK)[None, :]
        factors = tl.load(sb + n.to(tl.int64)[:, None] * sb_row + rank[None, :], here, other=0.0)
        inner = tl.load(t + rank, rank < RANK, other=0.0).to(tl.float32)
        total += tl.sum(factors.to(tl.float32) * inner[None, :], 1)
    if bias is not None:
        total += tl.load(bias + n, n < N, other=0.0).to(tl.float32)
    return total


# The bits of the float 2^23 + b are b and, above it, three bytes that are always the same.
_BYTES_TO_FLOATS = tl.constexpr(
    "{ .reg .b32 b; xor.b32 b, $4, 0x80808080; "
    + " ".join(f"prmt.b32 ${i}, b, 0x4B000000, 0x765{i};" for i in range(4))
    + " }"
)


@triton.jit
def _floats(values, PERMUTE: tl.constexpr):
    """fp32; bytes by permutations, four times as fast as conversions."""
    if PERMUTE:
        shifted = tl.inline_asm_elementwise(
            _BYTES_TO_FLOATS, "=r,=r,=r,=r,r", [values], dtype=tl.float32, is_pure=True, pack=4
        )
        return shifted - 8388736.0  # 2^23 + 128
    else:
        return values.to(tl.float32)


@triton.jit
def dense_kernel(
    x, w, scale, t, sb, bias, y, x_units, w_units, t_row, sb_row, y_row, N,
    K: tl.constexpr, X_UNIT: tl.constexpr, UNIT: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr,
    OUTPUTS: tl.constexpr, BLOCK: tl.constexpr, PERMUTE: tl.constexpr,
    ASKS: tl.constexpr, WAITS: tl.constexpr,
):  # fmt: skip
    """OUTPUTS rows of W in a float type, or in 8 bits with a scale a row, times one row of x.

    W's rows are ``w_units`` times UNIT elements apart, so that the compiler knows how they are aligned, and
    x's likewise.
    """
    if ASKS:  # for the next kernel to start
        tl.extra.cuda.gdc_launch_dependents()
    x += tl.program_id(1) * x_units * X_UNIT
    y += tl.program_id(1) * y_row
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = w + (n.to(tl.int64) * w_units * UNIT)[:, None]
    sums = tl.zeros([OUTPUTS, BLOCK], tl.float32)
    for start in tl.static_range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        here = (n < N)[:, None] & (k < K)[None, :]
        values = tl.load(x + k, k < K, other=0.0).to(tl.float32)
        sums += _floats(tl.load(row + k[None, :], here, other=0.0), PERMUTE) * values[None, :]
    total = tl.sum(sums, 1)
    if scale is not None:
        total *= tl.load(scale + n, n < N, other=0.0).to(tl.float32)
        if w.dtype.element_ty == tl.int8:
            total *= 1 / 127
    if WAITS:  # for the kernel before, which computes t
        tl.extra.cuda.gdc_wait()
    if RANK:
        t += tl.program_id(1) * t_row
    total = _update(total, n, t, sb, bias, sb_row, N, RANK, RANKS)
    tl.store(y + n, total.to(y.dtype.element_ty), n < N)


@triton.jit
def _fetch(
    packed, row, word, N, K: tl.constexpr,
    absmax_ptr, nested_absmax_ptr, nested_code_ptr, offset_ptr,
    BLOCK_SIZE: tl.constexpr, NESTED: tl.constexpr, NESTED_BLOCK: tl.constexpr,
):  # fmt: skip
    """Words of 8 codes and their blocks' scales, zero outside of W."""
    here = (row < N) & (word < K // 8)
    at = row.to(tl.int64) * (K // 8) + word
    block = at // (BLOCK_SIZE // 8)
    scale = block_scale(
        block, here, absmax_ptr, nested_absmax_ptr, nested_code_ptr, offset_ptr, NESTED, NESTED_BLOCK
    )
    return tl.load(packed + at, here, other=0), tl.where(here, scale, 0.0)


@triton.jit
def _code_values(code, words, UNITS: tl.constexpr):
    """Code values fp32 (UNITS, 8) of words; element e is in byte e // 2, the even ones in its high nibble."""
    element = tl.arange(0, 8)
    return look_up(code, (words[:, None] >> (4 * (element ^ 1))[None, :]) & 15, UNITS, 8)


@triton.jit
def nf4_kernel(
    x, packed, absmax_ptr, code_ptr, nested_absmax_ptr, nested_code_ptr, offset_ptr, t, sb, bias, y, sb_row,
    N, K: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    NESTED: tl.constexpr, NESTED_BLOCK: tl.constexpr, OUTPUTS: tl.constexpr, WORDS: tl.constexpr,
    WAITS: tl.constexpr,
):  # fmt: skip
    """OUTPUTS rows of a 4-bit W, WORDS words of a row at a time, times one row of x.

    The next words are asked for before those at hand are looked up, which waits for the whole program. A
    block's scale is multiplied in after the sum over a word.
    """
    unit, code = tl.arange(0, OUTPUTS * WORDS), read_code(code_ptr)
    row, first = tl.program_id(0) * OUTPUTS + unit // WORDS, unit % WORDS
    sums = tl.zeros([OUTPUTS * WORDS], tl.float32)
    next_words, next_scale = _fetch(
        packed, row, first, N, K, absmax_ptr, nested_absmax_ptr, nested_code_ptr, offset_ptr, BLOCK_SIZE,
        NESTED, NESTED_BLOCK,
    )  # fmt: skip
    for start in range(0, K // 8, WORDS):
        words, scale = next_words, next_scale
        word = start + first
        next_words, next_scale = _fetch(
            packed, row, word + WORDS, N, K, absmax_ptr, nested_absmax_ptr, nested_code_ptr, offset_ptr,
            BLOCK_SIZE, NESTED, NESTED_BLOCK,
        )  # fmt: skip
        places = (word * 8)[:, None] + tl.arange(0, 8)[None, :]
        values = tl.load(x + places, (word < K // 8)[:, None], other=0.0).to(tl.float32)
        sums += tl.sum(_code_values(code, words, OUTPUTS * WORDS) * values, 1) * scale
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    total = tl.sum(tl.reshape(sums, (OUTPUTS, WORDS)), 1)
    if WAITS:  # as in dense_kernel
        tl.extra.cuda.gdc_wait()
    total = _update(total, n, t, sb, bias, sb_row, N, RANK, RANKS)
    tl.store(y + n, total.to(y.dtype.element_ty), n < N)


@triton.jit
def nf4_rows_kernel(
    x, packed, absmax_ptr, code_ptr, nested_absmax_ptr, nested_code_ptr, offset_ptr, t, sb, bias, y,
    x_row, t_row, sb_row, y_row, B, N,
    K: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    NESTED: tl.constexpr, NESTED_BLOCK: tl.constexpr, OUTPUTS: tl.constexpr, WORDS: tl.constexpr,
    ROWS: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    """OUTPUTS rows of a 4-bit W times ROWS rows of x, as products of tiles."""
    unit, code = tl.arange(0, OUTPUTS * WORDS), read_code(code_ptr)
    row, first = tl.program_id(0) * OUTPUTS + unit // WORDS, unit % WORDS
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    b = tl.arange(0, ROWS)
    sums = tl.zeros([OUTPUTS, ROWS], tl.float32)
    next_words, next_scale = _fetch(
        packed, row, first, N, K, absmax_ptr, nested_absmax_ptr, nested_code_ptr, offset_ptr, BLOCK_SIZE,
        NESTED, NESTED_BLOCK,
    )  # fmt: skip
    for start in range(0, K // 8, WORDS):
        words, scale = next_words, next_scale
        next_words, next_scale = _fetch(
            packed, row, start + WORDS + first, N, K, absmax_ptr, nested_absmax_ptr, nested_code_ptr,
            offset_ptr, BLOCK_SIZE, NESTED, NESTED_BLOCK,
        )  # fmt: skip
        k = start * 8 + tl.arange(0, WORDS * 8)
        values = tl.load(x + k[:, None] + b[None, :] * x_row, (k < K)[:, None] & (b < B)[None, :], other=0.0)
        if CAST:
            values = values.to(tl.float32)
        weights = _code_values(code, words, OUTPUTS * WORDS) * scale[:, None]
        weights = tl.reshape(weights, (OUTPUTS, WORDS * 8)).to(values.dtype)
        sums = tl.dot(weights, values, sums, input_precision="ieee")
    if RANK:
        rank = tl.arange(0, RANKS)
        here_2 = (n < N)[:, None] & (rank < RANK)[None, :]
        factors = tl.load(sb + n.to(tl.int64)[:, None] * sb_row + rank[None, :], here_2, other=0.0)
        at_t = t + rank[:, None] + b[None, :] * t_row
        inner = tl.load(at_t, (rank < RANK)[:, None] & (b < B)[None, :], other=0.0)
        if CAST:
            factors, inner = factors.to(tl.float32), inner.to(tl.float32)
        sums = tl.dot(factors, inner, sums, input_precision="ieee")
    if bias is not None:
        sums += tl.load(bias + n, n < N, other=0.0).to(tl.float32)[:, None]
    at_y = y + n[:, None] + b[None, :] * y_row
    tl.store(at_y, sums.to(y.dtype.element_ty), (n < N)[:, None] & (b < B)[None, :])


_POINTERS = {"t": "*T", "sb": "*T", "bias": "*T", "y": "*T", "sb_row": "i32", "N": "i32"}
_NF4 = {
    "x": "*T", "packed": "*i32", "absmax_ptr": "*u8", "code_ptr": "*fp32", "nested_absmax_ptr": "*fp32",
    "nested_code_ptr": "*fp32", "offset_ptr": "*fp32", **_POINTERS,
}  # fmt: skip
_ROWS = {**_NF4, **dict.fromkeys(("x_row", "t_row", "y_row", "B"), "i32")}


def _compilation(
    function: Any, pointers: dict[str, str], warps: int = 4, least: int = 75, **constants: Any
) -> Compilation:
    signature = {name: kind for name, kind in pointers.items() if name not in constants}
    signature |= dict.fromkeys(constants, "constexpr")
    return Compilation(function, signature, constants, num_warps=warps, least_capability=least)


def _dense_compilation(
    outputs: int, inputs: int, held: str = "*T", least: int = 75, **constants: Any
) -> Compilation:
    rows, block, warps = dense_tile(outputs, inputs, 2 if held == "*T" else 1)
    pointers = {"x": "*T", "w": held, "scale": "*fp32", **_POINTERS}
    pointers |= dict.fromkeys(("x_units", "w_units", "t_row", "y_row"), "i32")
    sizes = {"K": inputs, "X_UNIT": 8, "UNIT": 8, "RANK": 16, "RANKS": 16, "OUTPUTS": rows, "BLOCK": block}
    sizes |= {"PERMUTE": held == "*i8", "ASKS": False, "WAITS": False}
    return _compilation(dense_kernel, pointers, warps, least, **{**sizes, **constants})


def _nf4_compilation(inputs: int, least: int = 75) -> Compilation:
    outputs, words, warps = nf4_tile(inputs)
    sizes = {"K": inputs, "OUTPUTS": outputs, "WORDS": words, "RANKS": 16, "WAITS": least >= 90, **_SIZES}
    return _compilation(nf4_kernel, _NF4, warps, least, **sizes)


def _rows_compilation(outputs: int, words: int, least: int, most: int) -> Compilation:
    tile = {"OUTPUTS": outputs, "WORDS": words, "RANKS": 16, "ROWS": MOST_ROWS, "CAST": False}
    compilation = _compilation(nf4_rows_kernel, _ROWS, least=least, K=4096, **tile, **_SIZES)
    return replace(compilation, most_capability=most)


_SIZES = {"BLOCK_SIZE": 64, "NESTED": True, "NESTED_BLOCK": 256, "RANK": 16}

COMPILATIONS = (
    _dense_compilation(28672, 4096, scale=None, bias=None),
    _dense_compilation(1024, 3072, scale=None, bias=None),
    _dense_compilation(16, 14336, scale=None, bias=None, t=None, sb=None, RANK=0, RANKS=1),
    _dense_compilation(16, 14336, least=90, scale=None, bias=None, t=None, sb=None, RANK=0, ASKS=True),
    _dense_compilation(28672, 4096, held="*i8"),
    _dense_compilation(28672, 4096, held="*i8", least=90, WAITS=True),
    _dense_compilation(4096, 14336, held="*fp8e4nv", least=89, bias=None),
    *(_nf4_compilation(inputs) for inputs in (1024, 4096, 14336)),
    _nf4_compilation(14336, least=90),
    _rows_compilation(16, 8, 75, 75),
    _rows_compilation(16, 64, 80, 120),
    _rows_compilation(32, 32, 80, 120),
)
