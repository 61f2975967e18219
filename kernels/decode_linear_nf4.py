"""A few rows of x times a 4-bit weight, on tensor cores: codes become operands in registers.

What an element of the weight costs in instructions decides, not its half byte of traffic. So packed bytes are
copied to shared memory some steps ahead and read from there in the layout in which a tensor core takes the
weights; the 16 values of the code, rounded to x's type, are looked up in between by permuting bytes. Even and
odd elements stay apart, as two products: they are the upper and the lower halves of bytes. A block's scale
multiplies the products' sums in fp32, not the weights.

Legend: B rows of x, K inputs, N outputs, R ranks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .spec import Compilation

CHUNK = 64
"""Elements of a product with one scale; a block is made of such."""
MANY_OUTPUTS = 16384
"""As many keep a GPU busy with wide tiles, and make products pay for one row of x too."""
SOME_OUTPUTS = 4096
"""As many do so with more than 8 rows of x, for which narrow tiles take up to 1.6 times as long."""


class Tile(NamedTuple):
    """Outputs a program, chunks a step, warps, steps in shared memory. Found by trying, on an H200."""

    outputs: int
    chunks: int
    warps: int
    stages: int


def tile(outputs: int, rows: int) -> Tile:
    """Programs to fill a GPU, then work to fill a program: more where there are more rows."""
    wide = outputs >= (MANY_OUTPUTS if rows <= 8 else SOME_OUTPUTS)
    return Tile(32, 4, 4, 4) if wide else Tile(16, 8, 4, 4)


@triton.jit
def _table_word(code_ptr, first: tl.constexpr, SHIFT: tl.constexpr, T: tl.constexpr):
    """Bytes SHIFT / 8 of four values of the code as an int32.

    A tile of one element: what is computed from tiles that are loaded may be computed in whatever layout its
    user needs, and what is computed from a scalar may not.
    """
    at = code_ptr + tl.zeros([1, 1, 1], tl.int32) + first
    word = tl.zeros([1, 1, 1], tl.int32)
    for i in tl.static_range(4):
        bits = tl.load(at + i).to(T).to(tl.int16, bitcast=True).to(tl.int32)
        word |= ((bits >> SHIFT) & 0xFF) << (8 * i)
    return word


@triton.jit
def _table(code_ptr, SHIFT: tl.constexpr, T: tl.constexpr):
    return (
        _table_word(code_ptr, 0, SHIFT, T),
        _table_word(code_ptr, 4, SHIFT, T),
        _table_word(code_ptr, 8, SHIFT, T),
        _table_word(code_ptr, 12, SHIFT, T),
    )


def _look_up_four(answer: str, table: int) -> str:
    """Four codes in a table of 16 bytes: among the first 8 and the last 8, then one of the two answers.

    A tile's operand comes once for each of four bytes: the table's words are $3, $7 and so on.
    """
    words = [f"${3 + 4 * (4 * table + i)}" for i in range(4)]
    return (
        f"prmt.b32 a, {words[0]}, {words[1]}, s; prmt.b32 b, {words[2]}, {words[3]}, s; "
        f"prmt.b32 {answer}, a, b, h; "
    )


def _look_up(digits: str) -> str:
    """Values of four bytes' upper or lower codes: ``digits`` takes them from the lower and the upper bytes of
    the values of all codes of two bytes. What both look-ups compute the assembler computes once."""
    return (
        "{ .reg .b32 s, h, a, b, low, high; and.b32 s, $2, 0x77777777; shr.u32 h, $2, 1; "
        "lop3.b32 h, h, 0x44444444, 0x32103210, 0xEA; "  # (h & 0x4...) | 0x3210...
        + _look_up_four("low", 0)
        + _look_up_four("high", 1)
        + f"prmt.b32 $0, low, high, {digits}; shr.u32 s, s, 16; shr.u32 h, h, 16; "
        + _look_up_four("low", 0)
        + _look_up_four("high", 1)
        + f"prmt.b32 $1, low, high, {digits}; }}"
    )


_UPPER, _LOWER = tl.constexpr(_look_up("0x7351")), tl.constexpr(_look_up("0x6240"))
_OPERANDS = tl.constexpr("=r,=r," + ",".join(["r"] * 33))


@triton.jit
def _values(packed, low, high, x, SHIFT: tl.constexpr, PERMUTE: tl.constexpr):
    """Values in x's type of the upper (SHIFT 4) or lower (SHIFT 0) codes of bytes."""
    if PERMUTE:
        return tl.inline_asm_elementwise(
            _UPPER if SHIFT else _LOWER, _OPERANDS,
            [packed, low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]],
            dtype=x.dtype.element_ty, is_pure=True, pack=4,
        )  # fmt: skip
    else:
        code = tl.reshape((packed.to(tl.int32) >> SHIFT) & 15, (packed.numel,))
        return tl.reshape(tl.gather(low, code, 0), packed.shape).to(x.dtype.element_ty)


@triton.jit
def _stored_scale(block, absmax_ptr, nested_absmax_ptr, NESTED: tl.constexpr, NESTED_BLOCK: tl.constexpr):
    """What a scale is decoded from: asked for a step ahead."""
    absmax = tl.load(absmax_ptr + block)
    if NESTED:
        return absmax, tl.load(nested_absmax_ptr + block // NESTED_BLOCK)
    else:
        return absmax, absmax


@triton.jit
def nf4_products_kernel(
    x, packed, absmax_ptr, code_ptr, nested_absmax_ptr, nested_code_ptr, offset_ptr, t, sb, bias, y,
    x_units, t_row, sb_row, y_row, B, N,
    K: tl.constexpr, X_UNIT: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    NESTED: tl.constexpr, NESTED_BLOCK: tl.constexpr, OUTPUTS: tl.constexpr, CHUNKS: tl.constexpr,
    ROWS: tl.constexpr, STAGES: tl.constexpr, PERMUTE: tl.constexpr, CAST: tl.constexpr, WAITS: tl.constexpr,
):  # fmt: skip
    """OUTPUTS rows of W times ROWS rows of x, CHUNKS chunks of each a step. ``x`` is read as pairs of
    elements, int32, whose rows are ``x_units`` times X_UNIT of these apart: so the compiler sees how they are
    aligned."""
    first = tl.program_id(0) * OUTPUTS
    row = tl.minimum(tl.arange(0, OUTPUTS), N - 1 - first)
    chunk, byte, b = tl.arange(0, CHUNKS), tl.arange(0, 32), tl.arange(0, ROWS)
    T: tl.constexpr = y.dtype.element_ty
    if PERMUTE:
        low, high = _table(code_ptr, 0, T), _table(code_ptr, 8, T)
    else:
        low = tl.load(code_ptr + tl.arange(0, 16)).to(T).to(tl.float32)
        high = low
    block = (first + row)[None, :] * (K // BLOCK_SIZE)
    at = block + (tl.minimum(chunk, K // 64 - 1) * 64 // BLOCK_SIZE)[:, None]
    next_absmax, next_largest = _stored_scale(at, absmax_ptr, nested_absmax_ptr, NESTED, NESTED_BLOCK)
    packed += first.to(tl.int64) * (K // 2)
    packed_at = row[None, :, None] * (K // 2) + chunk[:, None, None] * 32 + byte[None, None, :]
    pairs_at = b[None, :, None] * (x_units * X_UNIT) + chunk[:, None, None] * 32 + byte[None, None, :]
    total = tl.zeros([CHUNKS, OUTPUTS, ROWS], tl.float32)
    for start in tl.range(0, K // 64, CHUNKS, num_stages=STAGES):
        if NESTED:
            scale = tl.load(nested_code_ptr + next_absmax.to(tl.int32)) * next_largest + tl.load(offset_ptr)
        else:
            scale = next_absmax.to(tl.float32)
        at = block + (tl.minimum(start + CHUNKS + chunk, K // 64 - 1) * 64 // BLOCK_SIZE)[:, None]
        next_absmax, next_largest = _stored_scale(at, absmax_ptr, nested_absmax_ptr, NESTED, NESTED_BLOCK)
        here = ((start + chunk < K // 64) | (K // 64 % CHUNKS == 0))[:, None, None]
        codes = tl.load(packed + start * 32 + packed_at, here, other=0)
        pairs = tl.load(x + start * 32 + pairs_at, here & (b < B)[None, :, None], other=0)
        even = tl.trans(pairs.to(tl.int16).to(T, bitcast=True), (0, 2, 1))
        odd = tl.trans((pairs >> 16).to(tl.int16).to(T, bitcast=True), (0, 2, 1))
        upper = _values(codes, low, high, y, 4, PERMUTE)
        lower = _values(codes, low, high, y, 0, PERMUTE)
        if CAST:
            even, odd = even.to(tl.float32), odd.to(tl.float32)
            upper, lower = upper.to(tl.float32), lower.to(tl.float32)
        sums = tl.dot(lower, odd, tl.dot(upper, even))
        total += sums * scale[:, :, None]
    found = tl.sum(total, 0)
    if WAITS:  # for the kernel before, which computes t
        tl.extra.cuda.gdc_wait()
    if RANK:
        rank = tl.arange(0, RANKS)
        factors_at = sb + (first + row).to(tl.int64)[:, None] * sb_row + rank[None, :]
        factors = tl.load(factors_at, (rank < RANK)[None, :], other=0.0)
        here = (rank < RANK)[:, None] & (b < B)[None, :]
        inner = tl.load(t + rank[:, None] + b[None, :] * t_row, here, other=0.0)
        if CAST:
            factors, inner = factors.to(tl.float32), inner.to(tl.float32)
        found = tl.dot(factors, inner, found)
    if bias is not None:
        found += tl.load(bias + first + row).to(tl.float32)[:, None]
    n = first + tl.arange(0, OUTPUTS)
    tl.store(y + n[:, None] + b[None, :] * y_row, found.to(T), (n < N)[:, None] & (b < B)[None, :])


_POINTERS = {
    "x": "*i32", "packed": "*u8", "absmax_ptr": "*u8", "code_ptr": "*fp32", "nested_absmax_ptr": "*fp32",
    "nested_code_ptr": "*fp32", "offset_ptr": "*fp32", "t": "*T", "sb": "*T", "bias": "*T", "y": "*T",
    **dict.fromkeys(("x_units", "t_row", "sb_row", "y_row", "B", "N"), "i32"),
}  # fmt: skip


def _compilation(outputs: int, inputs: int, rows: int, least: int = 80) -> Compilation:
    of_w, chunks, warps, stages = tile(outputs, rows)
    constants: dict[str, Any] = {
        "K": inputs, "X_UNIT": 4, "RANK": 16, "RANKS": 16, "BLOCK_SIZE": 64, "NESTED": True,
        "NESTED_BLOCK": 256, "OUTPUTS": of_w, "CHUNKS": chunks, "ROWS": rows, "STAGES": stages,
        "PERMUTE": True, "CAST": False, "WAITS": least >= 90,
    }  # fmt: skip
    signature = {**_POINTERS, **dict.fromkeys(constants, "constexpr")}
    return Compilation(nf4_products_kernel, signature, constants, num_warps=warps, least_capability=least)


COMPILATIONS = (
    *(_compilation(28672, 4096, rows) for rows in (8, 16)),
    *(_compilation(4096, 14336, rows) for rows in (8, 16)),
    _compilation(4096, 14336, 8, least=90),
)
