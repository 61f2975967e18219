"""The Triton functions of :mod:`whet.kernels.adamw`: one pass over parameters, gradients and states."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

# Columns of the table of scalars; see adamw.adamw_scalars.
SCALARS = tl.constexpr(8)


@triton.jit
def _scalars(table, rows, blocks, in_table, GROUPED: tl.constexpr):
    """The eight scalars of each block of 256 numbers, as columns to broadcast."""
    row = blocks * 0
    if GROUPED:
        row += tl.load(rows + blocks, mask=in_table, other=0)
    at = table + row * SCALARS
    return (
        tl.load(at)[:, None],
        tl.load(at + 1)[:, None],
        tl.load(at + 2)[:, None],
        tl.load(at + 3)[:, None],
        tl.load(at + 4)[:, None],
        tl.load(at + 5)[:, None],
        tl.load(at + 6)[:, None],
        tl.load(at + 7)[:, None],
    )


@triton.jit
def _update(p, g, m, v, beta1, rest1, beta2, rest2, eps, step_size, decay, root2):
    """AdamW's new parameters and moments, before any rounding of the states."""
    m = beta1 * m + rest1 * g
    v = beta2 * v + rest2 * g * g
    p = p * decay - step_size * (m / (tl.sqrt(v) * root2 + eps))
    return p, m, v


@triton.jit
def adamw_kernel(
    p_in, g_in, m_in, v_in, p_out, m_out, v_out, shadow, table, rows, clip, numel,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
    GROUPED: tl.constexpr, CLIP: tl.constexpr, SHADOW: tl.constexpr,
):  # fmt: skip
    """fp32 states. One program updates BLOCKS blocks of BLOCK numbers."""
    blocks = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    at = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = at < numel
    s0, s1, s2, s3, s4, s5, s6, s7 = _scalars(table, rows, blocks, blocks * BLOCK < numel, GROUPED)
    g = tl.load(g_in + at, mask=inside, other=0.0)
    if CLIP:
        g = g * tl.load(clip)
    p = tl.load(p_in + at, mask=inside, other=0.0)
    m = tl.load(m_in + at, mask=inside, other=0.0)
    v = tl.load(v_in + at, mask=inside, other=0.0)
    p, m, v = _update(p, g, m, v, s0, s1, s2, s3, s4, s5, s6, s7)
    tl.store(p_out + at, p, mask=inside)
    tl.store(m_out + at, m, mask=inside)
    tl.store(v_out + at, v, mask=inside)
    if SHADOW:
        tl.store(shadow + at, p.to(shadow.dtype.element_ty), mask=inside)


@triton.jit
def _dequantize(
    codes, absmax, code, at, blocks, inside, in_table,
    ZERO: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Numbers by their codes; ZERO is 0's, for what is outside. The code lies in shared memory."""
    entries = tl.load(code + tl.arange(0, 256))
    index = tl.reshape(tl.load(codes + at, mask=inside, other=ZERO).to(tl.int32), (BLOCKS * BLOCK,))
    entry = tl.reshape(tl.gather(entries, index, 0), (BLOCKS, BLOCK))
    return entry * tl.load(absmax + blocks, mask=in_table, other=0.0)[:, None]


@triton.jit
def _decade(x, slope, count, UPPER: tl.constexpr, START: tl.constexpr, N0: tl.constexpr):
    """Move numbers from midway between two decades on to decade UPPER, which starts at START."""
    COUNT: tl.constexpr = N0 * (1 << UPPER)
    above = x >= START * (1.0 + 1.8 / COUNT)
    return tl.where(above, 0.1 * COUNT / (0.9 * START), slope), tl.where(above, 1.0 * COUNT, count)


@triton.jit
def _nearest(x, N0: tl.constexpr):
    """One more than the positions, among the positive entries, of the entries nearest to x > 0 in [0, 1]:
    0 stands for the entry 0, for what is below the first one's decade.

    Arithmetic instead of a search: sixteen dependent table reads a number would cost more than the bandwidth.
    Adding INTEGERS rounds to the nearest whole number, an instruction of the wide pipe, which floor is not.
    """
    INTEGERS: tl.constexpr = 12582912.0
    slope = tl.full(x.shape, 1e6 * N0 / 0.9, tl.float32)
    count = tl.full(x.shape, 1.0 * N0, tl.float32)
    slope, count = _decade(x, slope, count, 1, 1e-6, N0)
    slope, count = _decade(x, slope, count, 2, 1e-5, N0)
    slope, count = _decade(x, slope, count, 3, 1e-4, N0)
    slope, count = _decade(x, slope, count, 4, 1e-3, N0)
    slope, count = _decade(x, slope, count, 5, 1e-2, N0)
    slope, count = _decade(x, slope, count, 6, 1e-1, N0)
    # In intervals of the decade, less a half: what is nearest to it is what lies below.
    interval = tl.minimum(x * slope - (count * (1.0 / 9.0) + 0.5), count - 0.75)
    nearest = (interval + (count + (INTEGERS - N0))) - (INTEGERS - 1.0)
    return tl.where(x >= 1.0 - 0.225 / (64.0 * N0), 127.0 * N0 + 1.0, nearest)


@triton.jit
def _quantize(x, codes, absmax, at, blocks, inside, in_table, SIGNED: tl.constexpr):
    INTEGERS: tl.constexpr = 12582912.0  # the last byte of a small number beside it is the number's
    largest = tl.max(tl.abs(x), 1)
    tl.store(absmax + blocks, largest, mask=in_table)
    scaled = tl.abs(x) * (1.0 / tl.maximum(largest, 1.1754944e-38))[:, None]
    if SIGNED:
        nearest = tl.where(scaled < 0.275e-6, 0.0, _nearest(scaled, 1))
        # There is no -1 beside 1: the most negative entry is the last midpoint.
        code = tl.maximum(tl.where(x < 0, -nearest, nearest), -127.0) + (INTEGERS + 127.0)
    else:
        code = tl.where(x > 0, tl.maximum(_nearest(scaled, 2), 1.0), 0.0) + INTEGERS
    tl.store(codes + at, code.to(tl.int32, bitcast=True).to(tl.uint8), mask=inside)


@triton.jit
def adamw_8bit_kernel(
    p_in, g_in, m_in, m_in_max, v_in, v_in_max, p_out, m_out, m_out_max, v_out, v_out_max,
    shadow, table, rows, clip, signed_code, unsigned_code, numel,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
    GROUPED: tl.constexpr, CLIP: tl.constexpr, SHADOW: tl.constexpr,
):  # fmt: skip
    """8-bit states. One program updates BLOCKS blocks of BLOCK numbers; a row of the tile is a block."""
    blocks = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    at = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = at < numel
    in_table = blocks * BLOCK < numel
    s0, s1, s2, s3, s4, s5, s6, s7 = _scalars(table, rows, blocks, in_table, GROUPED)
    g = tl.load(g_in + at, mask=inside, other=0.0)
    if CLIP:
        g = g * tl.load(clip)
    p = tl.load(p_in + at, mask=inside, other=0.0)
    m = _dequantize(m_in, m_in_max, signed_code, at, blocks, inside, in_table, 127, BLOCKS, BLOCK)
    v = _dequantize(v_in, v_in_max, unsigned_code, at, blocks, inside, in_table, 0, BLOCKS, BLOCK)
    p, m, v = _update(p, g, m, v, s0, s1, s2, s3, s4, s5, s6, s7)
    tl.store(p_out + at, p, mask=inside)
    _quantize(m, m_out, m_out_max, at, blocks, inside, in_table, True)
    _quantize(v, v_out, v_out_max, at, blocks, inside, in_table, False)
    if SHADOW:
        tl.store(shadow + at, p.to(shadow.dtype.element_ty), mask=inside)
