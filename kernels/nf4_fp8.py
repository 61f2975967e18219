"""NF4 dequantisation straight to FP8 (e4m3) with a scale for each row, one launch.

    scale[n] = max |absmax| of row n's blocks / 448        W8[n, k] = e4m3(code * (absmax / scale[n]))

A block's largest element has the code 1 or -1, so the largest magnitude of a row is the largest absmax of its
blocks: a program that holds whole rows knows it from the absmax it reads anyway. Where a block is shared with
the next row (K no multiple of the blocksize), or doubly quantised absmax stand for a block of zeros, it is a
bound instead: a scale that is larger than needed costs nothing but subnormals. Against dense 16-bit rows
quantised afterwards, this rounds once instead of twice and never writes the 16-bit weight.

1.5 bytes an element are soon moved, so arithmetic counts: within a block a code stands for one byte, and a
thread makes that table of 16 bytes once for 32 elements, then looks four elements up at a time.

Legend: N output features (rows), K input features.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .backend import uses_triton
from .fp8 import converts_natively
from .fp8_triton import E4M3_MAX, LEAST_SCALE, e4m3_bits
from .nf4 import block_scale, check_out, code_values, element_scales, scale_arguments, unit_of
from .nf4_format import Nf4Weight, quantize_nf4
from .nf4_lookup import look_up_bytes, permutes_natively
from .spec import Case, Compilation, Inputs, KernelSpec

_LARGEST = tl.constexpr(E4M3_MAX)
_LEAST_SCALE = tl.constexpr(LEAST_SCALE)
_FOUR_E4M3 = tl.constexpr("""{
    .reg .b16 low, high;
    cvt.rn.satfinite.e4m3x2.f32 low, $2, $1;
    cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;
    mov.b32 $0, {low, high};
}""")


@triton.jit
def _table(code_ptr, factor, FIRST: tl.constexpr, NATIVE: tl.constexpr):
    """What codes FIRST to FIRST + 3 stand for in e4m3, as the bytes of an int32; one more axis, for words."""
    a, b = tl.load(code_ptr + FIRST) * factor, tl.load(code_ptr + FIRST + 1) * factor
    c, d = tl.load(code_ptr + FIRST + 2) * factor, tl.load(code_ptr + FIRST + 3) * factor
    if NATIVE:  # e4m3_bits of them, without bytes that have registers of their own
        table = tl.inline_asm_elementwise(
            _FOUR_E4M3, "=r,f,f,f,f", [a, b, c, d], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        table = e4m3_bits(a, False).to(tl.int32) | (e4m3_bits(b, False).to(tl.int32) << 8)
        table |= (e4m3_bits(c, False).to(tl.int32) << 16) | (e4m3_bits(d, False).to(tl.int32) << 24)
    return table[:, :, None]


@triton.jit
def _dequantize_fp8(
    packed_ptr,
    absmax_ptr,
    code_ptr,
    nested_absmax_ptr,
    nested_code_ptr,
    offset_ptr,
    out_ptr,
    row_scale_ptr,
    out_stride,
    rows,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    NESTED: tl.constexpr,
    NESTED_BLOCK: tl.constexpr,
    NATIVE: tl.constexpr,
    PERMUTE: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    # A unit is UNIT neighbouring elements, of one row and of one block. A program takes whole rows: the
    # absmax of their units are all that their scales need.
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, UNITS)[None, :]
    mask = (row < rows)[:, None] & (column < K // UNIT)
    row_64 = row.to(tl.int64)[:, None]
    unit = (row_64 if UNIT == 1 else row[:, None]) * (K // UNIT) + column
    # Asked for before the row's scale, which waits for the whole program.
    if UNIT == 1:
        word = tl.load(packed_ptr + unit // 2, mask=mask, other=0)
    else:
        at = packed_ptr + 4 * unit[:, :, None] + tl.arange(0, 4)
        word = tl.load(at, mask=mask[:, :, None], other=0)
    scale = block_scale(
        unit // (BLOCK // UNIT),
        mask,
        absmax_ptr,
        nested_absmax_ptr,
        nested_code_ptr,
        offset_ptr,
        NESTED,
        NESTED_BLOCK,
    )
    largest = tl.max(tl.where(mask, tl.abs(scale), 0.0), axis=1)
    row_scale = tl.maximum(tl.math.div_rn(largest, _LARGEST), _LEAST_SCALE)
    row_scale = tl.where(largest > 0.0, row_scale, 1.0)
    tl.store(row_scale_ptr + row, row_scale, mask=row < rows)
    factor = scale * tl.math.div_rn(1.0, row_scale)[:, None]

    if UNIT == 1:
        index = (word >> (4 - 4 * (unit % 2)).to(tl.uint8)) & 15
        bits = e4m3_bits(tl.load(code_ptr + index) * factor, NATIVE)
        tl.store(out_ptr + row_64 * out_stride + column, bits, mask=mask)
    else:
        t0, t1 = _table(code_ptr, factor, 0, NATIVE), _table(code_ptr, factor, 4, NATIVE)
        t2, t3 = _table(code_ptr, factor, 8, NATIVE), _table(code_ptr, factor, 12, NATIVE)
        words = tl.reshape(tl.join(*look_up_bytes(t0, t1, t2, t3, word, PERMUTE)), (ROWS, UNITS, 8))
        out = out_ptr + row_64[:, :, None] * (out_stride // 4) + 8 * column[:, :, None]
        # Not to be evicted first: that is faster alone, but the product that follows reads the result.
        tl.store(out + tl.arange(0, 8), words, mask=mask[:, :, None])


class _Tile(NamedTuple):
    """Rows a program, units of a row (a power of two), warps."""

    rows: int
    units: int
    warps: int


def _tile(units: int, unit: int) -> _Tile:
    """Whole rows; four units of 32 elements a thread, or 16 elements that come one by one."""
    a_warp = 32 * (16 if unit == 1 else 4)
    wide = triton.next_power_of_2(units)
    return _Tile(max(1, a_warp // wide), wide, min(32, max(1, wide // a_warp)))


def _launch(weight: Nf4Weight, out_NK: torch.Tensor, scale_N: torch.Tensor) -> None:
    rows, columns = weight.shape
    in_words = not (out_NK.data_ptr() % 4 or out_NK.stride(0) % 4)
    unit = unit_of(weight, 32) if in_words else 1
    permutes = permutes_natively(weight.device)
    kind = torch.uint8 if unit == 1 else torch.int32
    tile = _tile(columns // unit, unit)
    _dequantize_fp8[(triton.cdiv(rows, tile.rows),)](
        packed_ptr=weight.packed.view(kind),
        code_ptr=weight.code,
        out_ptr=out_NK.view(kind),
        row_scale_ptr=scale_N,
        out_stride=out_NK.stride(0),
        rows=rows,
        K=columns,
        BLOCK=weight.blocksize,
        UNIT=unit,
        NATIVE=permutes and converts_natively(weight.device),
        PERMUTE=permutes,
        ROWS=tile.rows,
        UNITS=tile.units,
        num_warps=tile.warps,
        enable_fp_fusion=False,
        **scale_arguments(weight),
    )


def dequantize_nf4_fp8(
    weight: Nf4Weight, *, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight in FP8, W ≈ W8 * scale.

    Args:
        weight: codes and scales, (N, K).
        out: where to write, (N, K) float8_e4m3fn of any row stride.

    Returns:
        W8 (N, K) float8_e4m3fn and the rows' scales (N,) fp32.

    Raises:
        ValueError: for an output of another shape.
    """
    if not uses_triton(weight.packed):
        return reference(weight, out=out)
    out = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device) if out is None else out
    scale_N = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    if check_out(out, weight.shape).numel():
        _launch(weight, out, scale_N)
    return out, scale_N


def reference(weight: Nf4Weight, *, out: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`dequantize_nf4_fp8`, in plain torch."""
    rows, columns = weight.shape
    absmax_NK = element_scales(weight, 0, rows)
    largest_N = absmax_NK.abs().amax(1) if columns else absmax_NK.new_zeros(rows)
    scale_N = torch.where(largest_N > 0, (largest_N / E4M3_MAX).clamp_min(LEAST_SCALE), 1.0)
    value_NK = code_values(weight, 0, rows) * (absmax_NK * (1 / scale_N)[:, None])
    w8_NK = value_NK.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return (w8_NK if out is None else check_out(out, weight.shape).copy_(w8_NK)), scale_N


def _operation(weight: Nf4Weight) -> tuple[torch.Tensor, torch.Tensor]:
    return dequantize_nf4_fp8(weight)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    sizes = case.sizes
    generator = torch.Generator(device).manual_seed(seed)
    w_NK = torch.randn(sizes["N"], sizes["K"], generator=generator, device=device) * 0.02
    weight = quantize_nf4(
        w_NK.to(dtype), sizes.get("blocksize", 64), sizes.get("double", True), code=sizes.get("code", "nf4")
    )
    return {"weight": weight}


def _traffic(inputs: Inputs) -> int:
    weight: Nf4Weight = inputs["weight"]
    rows, columns = weight.shape
    return weight.nbytes() + rows * columns + 4 * rows


def _compilation(nested: bool, columns: int, native: bool = True) -> Compilation:
    unit = 1 if columns % 32 else 32
    tile = _tile(columns // unit, unit)
    signature = {
        "packed_ptr": "*u8" if unit == 1 else "*i32",
        "absmax_ptr": "*u8" if nested else "*fp32",
        "code_ptr": "*fp32",
        "nested_absmax_ptr": "*fp32",
        "nested_code_ptr": "*fp32",
        "offset_ptr": "*fp32",
        "out_ptr": "*u8" if unit == 1 else "*i32",
        "row_scale_ptr": "*fp32",
        "out_stride": "i32",
        "rows": "i32",
    }
    constants: dict[str, Any] = {
        "K": columns,
        "BLOCK": 64,
        "UNIT": unit,
        "NESTED": nested,
        "NESTED_BLOCK": 256,
    }
    constants |= {"NATIVE": native, "PERMUTE": True, "ROWS": tile.rows, "UNITS": tile.units}
    types = {**signature, **dict.fromkeys(constants, "constexpr")}
    compilation = Compilation(_dequantize_fp8, types, constants, num_warps=tile.warps)
    return replace(compilation, least_capability=89) if native else replace(compilation, most_capability=86)


SPEC = KernelSpec(
    name="nf4_fp8",
    operation=_operation,
    reference=reference,
    inputs=_inputs,
    cases=(
        Case("plain", {"N": 12, "K": 256}),
        Case("single", {"N": 9, "K": 192, "double": False}),
        Case("across_rows", {"N": 21, "K": 96, "blocksize": 128}),
        Case("odd_across_rows", {"N": 21, "K": 48, "blocksize": 128}),
        Case("fp4", {"N": 5, "K": 512, "blocksize": 256, "code": "fp4"}),
        Case("wide", {"N": 3, "K": 8320}),
        Case("odd", {"N": 7, "K": 65}),
        Case("no_rows", {"N": 0, "K": 64}),
    ),
    timed=(
        Case("8b_gate_up", {"N": 28672, "K": 4096}),
        Case("8b_down", {"N": 4096, "K": 14336}),
        Case("0.6b_gate_up", {"N": 6144, "K": 1024}),
        Case("0.6b_down", {"N": 1024, "K": 3072}),
    ),
    # the scale, absmax / 448, may round apart by one unit of fp32
    tolerance={torch.float32: 2e-7, torch.bfloat16: 2e-7, torch.float16: 2e-7},
    traffic=_traffic,
    compilations=(
        _compilation(True, 4096),
        _compilation(False, 14336),
        _compilation(True, 1024),
        _compilation(True, 4095),
        _compilation(True, 4096, native=False),
    ),
)
