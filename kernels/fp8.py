"""FP8 (e4m3) matrices with one fp32 scale a row, and their product.

    scale = max|row| / 448        x ≈ x8 · scale

448 is e4m3's largest number; the format is Micikevicius et al., 2022 (arXiv:2209.05433). In x @ W.T the scales
of x's and W's rows multiply each output once and stay out of the sum. In the gradient dy @ W the sum runs over W's
rows: their scales are folded into dy before it is quantised (``column_scale_K``), and W is only transposed.

A row of zeros has scale 1. A NaN or an infinity stays visible in its own row and leaves the other rows alone.

Legend: T rows, K columns, N output features.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from .backend import uses_triton
from .rows import addressable, output, row_tile

E4M3_MAX = 448.0
_LARGEST = tl.constexpr(E4M3_MAX)
_LEAST_SCALE = tl.constexpr(2.0**-100)  # the reciprocal of a scale stays finite


@lru_cache(maxsize=16)
def converts_natively(device: torch.device) -> bool:
    """Whether the hardware converts to e4m3 (capability 8.9 and up); elsewhere kernels do it in integers."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


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
def quantize_tile(x, NATIVE: tl.constexpr):
    """(bits of e4m3, scale a row) of a tile of whole rows; what is beyond a row's end must be zero."""
    size = tl.where(x == x, tl.abs(x), 0.0)
    largest = tl.max(size, axis=1)
    scale = tl.maximum(tl.math.div_rn(largest, _LARGEST), _LEAST_SCALE)
    scale = tl.where(largest > 0.0, scale, 1.0)
    return e4m3_bits(x * tl.math.div_rn(1.0, scale)[:, None], NATIVE), scale


@triton.jit
def _quantize(
    X, C, Q, SCALE, x_stride, q_stride, T, K,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """One program quantises ``ROWS`` rows, each column times C unless that is None."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    there = row < T
    mask = there[:, None] & (column < K)
    row_64 = row.to(tl.int64)[:, None]
    x = tl.load(X + row_64 * x_stride + column, mask=mask, other=0.0).to(tl.float32)
    if C is not None:
        x *= tl.load(C + column, mask=column < K, other=0.0).to(tl.float32)
    bits, scale = quantize_tile(x, NATIVE)
    tl.store(Q + row_64 * q_stride + column, bits, mask=mask)
    tl.store(SCALE + row, scale, mask=there)


@triton.jit
def _transpose(W, OUT, w_stride, out_stride, N, K, TILE: tl.constexpr):
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


def quantize_rows(
    x_TK: torch.Tensor, *, column_scale_K: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each row to e4m3 with its own scale.

    Args:
        x_TK: fp32, bf16 or fp16, row-strided or not.
        column_scale_K: multiplies the columns first, in fp32; the result stands for ``x * column_scale``.
        out: where x8 goes, (T, K) float8_e4m3fn, row-strided or not.

    Returns:
        x8_TK float8_e4m3fn; scale_T fp32 with x ≈ x8 · scale.

    Raises:
        ValueError: for an output of the wrong shape, or rows wider than the kernel takes.
    """
    T, K = x_TK.shape
    x8_TK = output(out, x_TK, torch.float8_e4m3fn)
    if not uses_triton(x_TK) or x_TK.numel() == 0:
        bits_TK, scale_T = _reference_quantize(x_TK, column_scale_K)
        return x8_TK.copy_(bits_TK), scale_T
    x_TK = addressable(x_TK)
    scale_T = torch.empty(T, dtype=torch.float32, device=x_TK.device)
    tile = row_tile(K)
    _quantize[(triton.cdiv(T, tile.rows),)](
        x_TK, column_scale_K, x8_TK.view(torch.uint8), scale_T, x_TK.stride(0), x8_TK.stride(0), T, K,
        tile.rows, tile.columns, converts_natively(x_TK.device), num_warps=tile.warps,
    )  # fmt: skip
    return x8_TK, scale_T


def _reference_quantize(
    x_TK: torch.Tensor, column_scale_K: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    x_TK = x_TK.float()
    if column_scale_K is not None:
        x_TK = x_TK * column_scale_K.float()
    size_TK = x_TK.abs().nan_to_num(nan=0.0, posinf=float("inf"))
    largest_T = size_TK.amax(1) if x_TK.shape[1] else size_TK.new_zeros(x_TK.shape[0])
    scale_T = (largest_T / E4M3_MAX).clamp_min(2.0**-100)
    scale_T = torch.where(largest_T > 0, scale_T, 1.0)
    x8_TK = (x_TK * (1 / scale_T)[:, None]).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return x8_TK, scale_T


def dequantize_rows(
    x8_TK: torch.Tensor, scale_T: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """x8 · scale, in plain torch."""
    return (x8_TK.float() * scale_T[:, None]).to(dtype)
