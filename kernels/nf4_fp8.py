"""NF4 dequantisation straight to FP8 (e4m3) with a scale for each row, one launch.

    scale[n] = max |absmax| of row n's blocks / 448        W8[n, k] = e4m3(code * (absmax / scale[n]))

A block's largest element has the code 1 or -1, so the largest magnitude of a row is the largest absmax of its
blocks: it is known after reading 1/64 of a number an element, and the codes are read once. Where a block is
shared with the next row (K no multiple of the blocksize), or doubly quantised absmax stand for a block of
zeros, it is a bound instead: a scale that is larger than needed costs nothing but subnormals. Against dense
16-bit rows quantised afterwards, this rounds once instead of twice and never writes the 16-bit weight.

Legend: N output features (rows), K input features.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .backend import uses_triton
from .fp8 import converts_natively
from .fp8_triton import E4M3_MAX, LEAST_SCALE, e4m3_bits
from .nf4 import (
    block_scale,
    check_out,
    code_values,
    element_scales,
    look_up,
    read_code,
    read_units,
    scale_arguments,
    unit_of,
    unpack,
)
from .nf4_format import Nf4Weight, quantize_nf4
from .spec import Case, Compilation, Inputs, KernelSpec

_LARGEST = tl.constexpr(E4M3_MAX)
_LEAST_SCALE = tl.constexpr(LEAST_SCALE)


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
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    ROW_BLOCKS: tl.constexpr,
    UNIT: tl.constexpr,
    NESTED: tl.constexpr,
    NESTED_BLOCK: tl.constexpr,
    NATIVE: tl.constexpr,
    TILE: tl.constexpr,
):
    code = read_code(code_ptr)
    # A program writes TILE units of one row; all programs of a row find the same scale.
    CHUNKS: tl.constexpr = tl.cdiv(K // UNIT, TILE)
    row = (tl.program_id(0) // CHUNKS).to(tl.int64)
    chunk = tl.program_id(0) % CHUNKS
    # All that comes from far is asked for before the row's scale, whose sum over the program waits.
    column = chunk * TILE + tl.arange(0, TILE)  # in units
    mask = column < K // UNIT
    unit = row * (K // UNIT) + column
    word = read_units(packed_ptr, unit, mask, UNIT)
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
    block = row * K // BLOCK + tl.arange(0, ROW_BLOCKS)
    of_row = block <= (row * K + K - 1) // BLOCK
    absmax = block_scale(
        block, of_row, absmax_ptr, nested_absmax_ptr, nested_code_ptr, offset_ptr, NESTED, NESTED_BLOCK
    )
    largest = tl.max(tl.where(of_row, tl.abs(absmax), 0.0), axis=0)
    row_scale = tl.maximum(tl.math.div_rn(largest, _LARGEST), _LEAST_SCALE)
    row_scale = tl.where(largest > 0.0, row_scale, 1.0)
    if chunk == 0:
        tl.store(row_scale_ptr + row, row_scale)

    index = unpack(word, unit, UNIT)
    value = look_up(code, index, TILE, UNIT) * (scale * tl.math.div_rn(1.0, row_scale))[:, None]
    out = out_ptr + row * out_stride + column * UNIT
    tl.store(out[:, None] + tl.arange(0, UNIT)[None, :], e4m3_bits(value, NATIVE), mask=mask[:, None])


def _row_blocks(columns: int, blocksize: int) -> int:
    """Blocks that a row touches at most, as a power of two."""
    return triton.next_power_of_2(-(-columns // blocksize) + (1 if columns % blocksize else 0))


def _launch(weight: Nf4Weight, out_NK: torch.Tensor, scale_N: torch.Tensor) -> None:
    rows, columns = weight.shape
    unit = unit_of(weight, 16)
    tile = 256
    packed = weight.packed.view(torch.int64) if unit == 16 else weight.packed
    _dequantize_fp8[(rows * triton.cdiv(columns // unit, tile),)](
        packed_ptr=packed,
        code_ptr=weight.code,
        out_ptr=out_NK.view(torch.uint8),
        row_scale_ptr=scale_N,
        out_stride=out_NK.stride(0),
        K=columns,
        BLOCK=weight.blocksize,
        ROW_BLOCKS=_row_blocks(columns, weight.blocksize),
        UNIT=unit,
        NATIVE=converts_natively(weight.device),
        TILE=tile,
        num_warps=4,
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
    return {"weight": quantize_nf4(w_NK.to(dtype), sizes.get("blocksize", 64), sizes.get("double", True))}


def _traffic(inputs: Inputs) -> int:
    weight: Nf4Weight = inputs["weight"]
    rows, columns = weight.shape
    return weight.nbytes() + rows * columns + 4 * rows


def _compilation(nested: bool) -> Compilation:
    signature = {
        "packed_ptr": "*i64",
        "absmax_ptr": "*u8" if nested else "*fp32",
        "code_ptr": "*fp32",
        "nested_absmax_ptr": "*fp32",
        "nested_code_ptr": "*fp32",
        "offset_ptr": "*fp32",
        "out_ptr": "*u8",
        "row_scale_ptr": "*fp32",
        "out_stride": "i32",
    }
    constants: dict[str, Any] = {"K": 4096, "BLOCK": 64, "ROW_BLOCKS": 64, "UNIT": 16, "NESTED": nested}
    constants |= {"NESTED_BLOCK": 256, "NATIVE": True, "TILE": 256}
    types = {**signature, **dict.fromkeys(constants, "constexpr")}
    return Compilation(_dequantize_fp8, types, constants, num_warps=4, least_capability=89)


SPEC = KernelSpec(
    name="nf4_fp8",
    operation=_operation,
    reference=reference,
    inputs=_inputs,
    cases=(
        Case("plain", {"N": 12, "K": 256}),
        Case("single", {"N": 9, "K": 192, "double": False}),
        Case("across_rows", {"N": 21, "K": 48, "blocksize": 128}),
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
    compilations=(_compilation(True), _compilation(False)),
)
