"""The Triton functions of :mod:`whet.kernels.adamw`: one pass over parameters, gradients and states."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

# Columns of the table of scalars; see adamw.adamw_scalars.
SCALARS = tl.constexpr(8)
# Adding it rounds to the nearest whole number, which then is the last bits: one instruction of the wide pipe.
INTEGERS = tl.constexpr(12582912.0)
# A decade's number from an fp32 number's bits, over 6; see _decade.
LINE_SLOPE = tl.constexpr(2.0**-23 / (6 * 3.322))
LINE_START = tl.constexpr(((23.3425 - 127) / 3.322 - 0.5) / 6)
LEAST_NORMAL, MOST = tl.constexpr(2.0**-126), tl.constexpr(3e38)
LOG2_5 = tl.constexpr(2.321928094887362)
LOG2_START = tl.constexpr(20.083571662769224)  # of 1e6 / 0.9


@triton.jit
def _scalars(table, rows, blocks, in_table, GROUPED: tl.constexpr):
    """The eight scalars of each block of 256 numbers, of ``blocks``' shape."""
    row = blocks * 0
    if GROUPED:
        row += tl.load(rows + blocks, mask=in_table, other=0)
    at = table + row * SCALARS
    return (
        tl.load(at),
        tl.load(at + 1),
        tl.load(at + 2),
        tl.load(at + 3),
        tl.load(at + 4),
        tl.load(at + 5),
        tl.load(at + 6),
        tl.load(at + 7),
    )


@triton.jit
def _update(p, g, m, v, beta1, rest1, beta2, rest2, eps, step_size, decay, root2):
    """AdamW's new parameters and moments, before any rounding of the states.

    By reciprocal roots, which are one instruction each; a division takes eight.
    """
    m = beta1 * m + rest1 * g
    v = beta2 * v + rest2 * g * g
    normal = tl.maximum(v, LEAST_NORMAL)
    root = normal * tl.rsqrt(tl.minimum(normal, MOST))  # infinite where v is, so that p stays
    scale = tl.rsqrt(root * root2 + eps)
    p = p * decay - step_size * (m * scale * scale)
    return p, m, v


@triton.jit
def adamw_kernel(
    p_in, g_in, m_in, v_in, p_out, m_out, v_out, shadow, table, rows, clip, numel,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
    GROUPED: tl.constexpr, CLIP: tl.constexpr, SHADOW: tl.constexpr,
):  # fmt: skip
    """fp32 states. One program updates BLOCKS blocks of BLOCK numbers."""
    blocks = (tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS))[:, None]
    at = blocks * BLOCK + tl.arange(0, BLOCK)[None, :]
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
def _dequantize(codes, absmax, code, at, blocks, inside, in_table, ZERO: tl.constexpr):
    """Numbers by their codes; ZERO is 0's, for what is outside. The code lies in shared memory."""
    entries = tl.load(code + tl.arange(0, 256))
    index = tl.load(codes + at, mask=inside, other=ZERO).to(tl.int32)
    entry = tl.gather(entries, tl.reshape(index, (index.numel,)), 0)
    return tl.reshape(entry, index.shape) * tl.load(absmax + blocks, mask=in_table, other=0.0)


@triton.jit
def _saturate(x):
    """x, no less than 0 and no more than 1; NVIDIA's compiler makes it a modifier of the operation before."""
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _decade(x):
    """INTEGERS plus the decade of x in [0, 1], or the next one where that is not far.

    The bits of an fp32 number are nearly its logarithm; a line through them comes to the next decade always
    before x does, but never so early that the nearest entry were the last decade's last but one.
    """
    bits = x.to(tl.int32, bitcast=True).to(tl.float32)
    return _saturate(bits * LINE_SLOPE + LINE_START) * 6.0 + INTEGERS


@triton.jit
def _nearest(x, N0: tl.constexpr, LEAST: tl.constexpr, STEEP: tl.constexpr):
    """INTEGERS plus the position, among 0 and the positive entries, of the entry nearest to x in [0, 1].

    It is 0 up to x = LEAST; from that number to the next, STEEP x grows by more than 1.

    Arithmetic instead of a search: sixteen dependent table reads a number would cost more than the bandwidth.
    It is of products and sums wherever it can be: comparisons and selections run at half their rate.
    """
    TOP: tl.constexpr = 64.0 * N0
    decade = _decade(x)
    # N0 2^decade, made as bits, and the intervals of the decade in a unit of x, N0 1e6 / 0.9 / 5^decade.
    count = ((decade.to(tl.int32, bitcast=True) << 23) + ((126 + N0) << 23)).to(tl.float32, bitcast=True)
    slope = tl.exp2((decade - INTEGERS) * -LOG2_5 + (LOG2_START + (N0 - 1)))
    # Intervals below x, less a half: what is nearest to it is what lies below. Up to a fifth of the first
    # interval the last entry of the decade before is nearer.
    interval = x * slope - (count * (1.0 / 9.0) + 0.5)
    interval = tl.minimum(interval, 2.5 * interval + 0.25)
    # From three quarters of the last interval on, 1 is nearer.
    interval += _saturate(x * (TOP / 0.9) - (TOP / 0.9 - 0.5))
    nearest = interval + (count + (INTEGERS + 1.0 - N0))
    return tl.maximum(nearest, _saturate(x * STEEP - LEAST * STEEP) + INTEGERS)


@triton.jit
def _quantize(x, codes, absmax, at, blocks, inside, in_table, SIGNED: tl.constexpr):
    size = tl.abs(x)
    largest = tl.max(size, 1)[:, None]
    tl.store(absmax + blocks, largest, mask=in_table)
    scaled = size * (1.0 / tl.maximum(largest, LEAST_NORMAL))
    if SIGNED:
        nearest = _nearest(scaled, 1, 0.275e-6, 1e14) - INTEGERS
        # There is no -1 beside 1: the most negative entry is the last midpoint.
        code = tl.maximum(tl.where(x < 0, -nearest, nearest), -127.0) + (INTEGERS + 127.0)
    else:
        code = _nearest(scaled, 2, 0.0, 1e38)  # 0 for 0 alone
    last_byte = code.to(tl.int32, bitcast=True).to(tl.uint8)
    tl.store(codes + at, last_byte, mask=inside)


@triton.jit
def adamw_8bit_kernel(
    p_in, g_in, m_in, m_in_max, v_in, v_in_max, p_out, m_out, m_out_max, v_out, v_out_max,
    shadow, table, rows, clip, signed_code, unsigned_code, numel,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
    GROUPED: tl.constexpr, CLIP: tl.constexpr, SHADOW: tl.constexpr,
):  # fmt: skip
    """8-bit states. One program updates BLOCKS blocks of BLOCK numbers; a row of the tile is a block."""
    blocks = (tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS))[:, None]
    at = blocks * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = at < numel
    in_table = blocks * BLOCK < numel
    s0, s1, s2, s3, s4, s5, s6, s7 = _scalars(table, rows, blocks, in_table, GROUPED)
    g = tl.load(g_in + at, mask=inside, other=0.0)
    if CLIP:
        g = g * tl.load(clip)
    p = tl.load(p_in + at, mask=inside, other=0.0)
    m = _dequantize(m_in, m_in_max, signed_code, at, blocks, inside, in_table, 127)
    v = _dequantize(v_in, v_in_max, unsigned_code, at, blocks, inside, in_table, 0)
    p, m, v = _update(p, g, m, v, s0, s1, s2, s3, s4, s5, s6, s7)
    tl.store(p_out + at, p, mask=inside)
    _quantize(m, m_out, m_out_max, at, blocks, inside, in_table, True)
    _quantize(v, v_out, v_out_max, at, blocks, inside, in_table, False)
    if SHADOW:
        tl.store(shadow + at, p.to(shadow.dtype.element_ty), mask=inside)
