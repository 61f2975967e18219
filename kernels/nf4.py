"""NF4 dequantisation: packed 4-bit codes and (doubly quantised) block scales to a dense weight, one launch.

    W[i] = code[index[i]] * absmax[i // blocksize]                       i = row * K + column
    absmax[b] = nested_code[absmax8[b]] * nested_absmax[b // 256] + offset        when doubly quantised

Dettmers et al. 2023, QLoRA, arXiv:2305.14314. Every product and sum is rounded by itself in fp32, as in
bitsandbytes, and the result is rounded once to the output's type: the values are bitsandbytes' bit for bit.

Reads 0.5 byte and writes 2 an element, so the copy bandwidth decides, as long as few instructions are spent
on an element: a thread takes a word of 8 codes, shifts it by constants and looks the values up in shared
memory: a shift, a mask, a load and a product, half of what a tree of selections costs. The scale is read once
a word.

The output may be row-strided (the base part of a wider stacked weight) and a range of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from .backend import interpreting, uses_triton
from .nf4_format import CODES, Nf4Weight, quantize_nf4
from .spec import Case, Compilation, Inputs, KernelSpec

__all__ = ["SPEC", "Nf4Weight", "dequantize_nf4", "quantize_nf4", "reference"]


@triton.jit
def block_scale(
    block,
    mask,
    absmax_ptr,
    nested_absmax_ptr,
    nested_code_ptr,
    offset_ptr,
    NESTED: tl.constexpr,
    NESTED_BLOCK: tl.constexpr,
):
    """Decoded absmax of the blocks, fp32; launches switch off multiply-add fusion, which rounds otherwise."""
    if NESTED:
        index = tl.load(absmax_ptr + block, mask=mask, other=0).to(tl.int32)
        largest = tl.load(nested_absmax_ptr + block // NESTED_BLOCK, mask=mask, other=0.0)
        return tl.load(nested_code_ptr + index) * largest + tl.load(offset_ptr)
    else:
        return tl.load(absmax_ptr + block, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def read_units(packed_ptr, unit, mask, UNIT: tl.constexpr):
    """Words of UNIT / 2 bytes, or the bytes that the elements are in if UNIT is 1."""
    return tl.load(packed_ptr + (unit // 2 if UNIT == 1 else unit), mask=mask, other=0)


@triton.jit
def unpack(word, unit, UNIT: tl.constexpr):
    """4-bit indices int32 (units, UNIT) of what :func:`read_units` read. To be asked for last: in the threads
    that write, words get there through shared memory."""
    element = tl.arange(0, UNIT)
    if UNIT == 1:
        return ((word.to(tl.int32) >> (4 - 4 * (unit % 2).to(tl.int32))) & 15)[:, None] + element[None, :]
    else:
        # Little-endian words: element e is in byte e // 2, the even ones in its high nibble.
        return (word[:, None] >> (4 * (element ^ 1))[None, :]).to(tl.int32) & 15


@triton.jit
def read_code(code_ptr):
    """The code's 16 values. To be asked for first of all: after what moves through shared memory it would be
    one more wait."""
    return tl.load(code_ptr + tl.arange(0, 16))


@triton.jit
def look_up(code, index, TILE: tl.constexpr, UNIT: tl.constexpr):
    """Code values fp32 (TILE, UNIT), from shared memory, where 16 neighbouring words never conflict."""
    return tl.reshape(tl.gather(code, tl.reshape(index, (TILE * UNIT,)), 0), (TILE, UNIT))


@triton.jit
def _dequantize(
    packed_ptr,
    absmax_ptr,
    code_ptr,
    nested_absmax_ptr,
    nested_code_ptr,
    offset_ptr,
    out_ptr,
    out_stride,
    first,
    rows,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    NESTED: tl.constexpr,
    NESTED_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # A unit is UNIT neighbouring elements, of one row and of one block. A program writes COLUMNS units of
    # each of ROWS rows: whole lines, whatever lies between the rows of the output.
    code = read_code(code_ptr)
    chunks = tl.cdiv(K // UNIT, COLUMNS)
    place = tl.arange(0, ROWS * COLUMNS)
    row = (tl.program_id(0) // chunks) * ROWS + place // COLUMNS
    column = (tl.program_id(0) % chunks) * COLUMNS + place % COLUMNS
    mask = (row < rows) & (column < K // UNIT)
    above = first + row
    if UNIT == 1:
        above = above.to(tl.int64)
    unit = above * (K // UNIT) + column
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
    value = look_up(code, unpack(word, unit, UNIT), ROWS * COLUMNS, UNIT) * scale[:, None]
    out = out_ptr + row.to(tl.int64) * out_stride + column * UNIT
    tl.store(
        out[:, None] + tl.arange(0, UNIT)[None, :], value.to(out_ptr.dtype.element_ty), mask=mask[:, None]
    )


def unit_of(weight: Nf4Weight, wide: int) -> int:
    """Elements a thread takes at a time: ``wide`` where rows and the packed tensor are made of such words."""
    whole = weight.shape[1] % wide == 0 and weight.packed.data_ptr() % (wide // 2) == 0
    return wide if whole else 1


def check_out(out_NK: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The output itself.

    Raises:
        ValueError: for another shape, or a last stride that is not 1.
    """
    if tuple(out_NK.shape) != shape or (out_NK.stride(1) != 1 and out_NK.shape[1] > 1):
        raise ValueError(
            f"the output has shape {tuple(out_NK.shape)} and strides {out_NK.stride()}; "
            f"needed is {shape} with unit stride along the row"
        )
    return out_NK


def scale_arguments(weight: Nf4Weight) -> dict[str, Any]:
    """What :func:`block_scale` reads; the absmax stands in for pointers that are not read."""
    unused = weight.absmax
    return {
        "absmax_ptr": weight.absmax,
        "nested_absmax_ptr": unused if weight.nested_absmax is None else weight.nested_absmax,
        "nested_code_ptr": unused if weight.nested_code is None else weight.nested_code,
        "offset_ptr": unused if weight.offset is None else weight.offset,
        "NESTED": weight.nested,
        "NESTED_BLOCK": weight.nested_blocksize,
    }


TILE = 512  # units a program of 128 threads: 16 bytes of codes a thread, and 64 of a 16-bit result


def _tile(units: int) -> tuple[int, int]:
    """Rows and units of a row a program: the power of two that fills the row with the least left over."""
    columns = min((512, 256, 128, 64), key=lambda size: triton.cdiv(units, size) * size)
    return TILE // columns, columns


def _launch(weight: Nf4Weight, out_NK: torch.Tensor, start: int) -> None:
    rows, columns = out_NK.shape
    unit = unit_of(weight, 8)
    tile_rows, tile_columns = _tile(columns // unit)
    packed = weight.packed.view(torch.int32) if unit == 8 else weight.packed
    _dequantize[(triton.cdiv(rows, tile_rows) * triton.cdiv(columns // unit, tile_columns),)](
        packed_ptr=packed,
        code_ptr=weight.code,
        out_ptr=out_NK,
        out_stride=out_NK.stride(0),
        first=start,
        rows=rows,
        K=columns,
        BLOCK=weight.blocksize,
        UNIT=unit,
        ROWS=tile_rows,
        COLUMNS=tile_columns,
        num_warps=4,
        enable_fp_fusion=False,
        **scale_arguments(weight),
    )


def dequantize_nf4(
    weight: Nf4Weight,
    *,
    out_NK: torch.Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
    start: int = 0,
    stop: int | None = None,
) -> torch.Tensor:
    """The dense weight, or its rows ``start`` to ``stop``.

    Args:
        weight: codes and scales, (N, K).
        out_NK: where to write, (stop - start, K) of any row stride; its dtype is the result's.
        dtype: fp32, bf16 or fp16, when out_NK is not given.
        start: first row.
        stop: row after the last; N if not given.

    Returns:
        (stop - start, K).

    Raises:
        ValueError: for rows outside the weight, or an output of another shape.
    """
    rows, columns = weight.shape
    stop = rows if stop is None else stop
    if not 0 <= start <= stop <= rows:
        raise ValueError(f"rows {start} to {stop} of a weight with {rows} rows")
    if not uses_triton(weight.packed):
        return reference(weight, out_NK=out_NK, dtype=dtype, start=start, stop=stop)
    shape = (stop - start, columns)
    out_NK = (
        torch.empty(shape, dtype=dtype, device=weight.device) if out_NK is None else check_out(out_NK, shape)
    )
    if out_NK.numel():
        _launch(weight, out_NK, start)
    return out_NK


def reference(
    weight: Nf4Weight,
    *,
    out_NK: torch.Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
    start: int = 0,
    stop: int | None = None,
) -> torch.Tensor:
    """As :func:`dequantize_nf4`, in plain torch."""
    rows, columns = weight.shape
    stop = rows if stop is None else stop
    value_NK = code_values(weight, start, stop) * element_scales(weight, start, stop)
    if out_NK is None:
        return value_NK.to(dtype)
    return check_out(out_NK, (stop - start, columns)).copy_(value_NK)


def code_values(weight: Nf4Weight, start: int, stop: int) -> torch.Tensor:
    """Code values of rows start..stop in plain torch: fp32 (stop - start, K)."""
    columns = weight.shape[1]
    first, last = start * columns, stop * columns
    byte = weight.packed[first // 2 : (last + 1) // 2].int()
    index = torch.stack([byte >> 4, byte & 15], dim=1).view(-1)[first % 2 :][: last - first]
    return weight.code[index].view(stop - start, columns)


def element_scales(weight: Nf4Weight, start: int, stop: int) -> torch.Tensor:
    """The scale of each element of rows start..stop in plain torch: fp32 (stop - start, K)."""
    columns, blocksize = weight.shape[1], weight.blocksize
    first, last = start * columns, stop * columns
    first_block, last_block = first // blocksize, -(-last // blocksize)
    scale = weight.scales(first_block, last_block).repeat_interleave(blocksize)
    return scale[first - first_block * blocksize :][: last - first].view(stop - start, columns)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    sizes = case.sizes
    generator = torch.Generator(device).manual_seed(seed)
    w_NK = torch.randn(sizes["N"], sizes["K"], generator=generator, device=device) * 0.02
    weight = quantize_nf4(
        w_NK, sizes.get("blocksize", 64), sizes.get("double", True), code=sizes.get("code", "nf4")
    )
    return {"weight": weight, "dtype": dtype, "start": sizes.get("start", 0), "stop": sizes.get("stop")}


def _traffic(inputs: Inputs) -> int:
    weight: Nf4Weight = inputs["weight"]
    rows, columns = weight.shape
    return weight.nbytes() + rows * columns * inputs["dtype"].itemsize


def _compilation(nested: bool, unit: int) -> Compilation:
    signature = {
        "packed_ptr": "*i32" if unit == 8 else "*u8",
        "absmax_ptr": "*u8" if nested else "*fp32",
        "code_ptr": "*fp32",
        "nested_absmax_ptr": "*fp32",
        "nested_code_ptr": "*fp32",
        "offset_ptr": "*fp32",
        "out_ptr": "*T",
        "out_stride": "i32",
        "first": "i32",
        "rows": "i32",
    }
    constants: Mapping[str, Any] = {
        "K": 4096 if unit == 8 else 4095,
        "BLOCK": 64,
        "UNIT": unit,
        "NESTED": nested,
        "NESTED_BLOCK": 256,
        "ROWS": 1,
        "COLUMNS": TILE,
    }
    return Compilation(
        _dequantize, {**signature, **dict.fromkeys(constants, "constexpr")}, constants, num_warps=4
    )


# Exact on a GPU; Triton's interpreter truncates to bf16 where the GPU rounds.
_TOLERANCE = {torch.float32: 1e-9, torch.bfloat16: 2**-7 if interpreting() else 1e-9, torch.float16: 1e-9}

SPEC = KernelSpec(
    name="nf4",
    operation=dequantize_nf4,
    reference=reference,
    inputs=_inputs,
    cases=(
        Case("plain", {"N": 48, "K": 128}),
        Case("single", {"N": 9, "K": 192, "double": False}),
        Case("some_rows", {"N": 33, "K": 64, "start": 5, "stop": 31}),
        Case("across_rows", {"N": 21, "K": 40, "blocksize": 128}),
        Case("odd", {"N": 7, "K": 65}),
        Case("odd_rows", {"N": 9, "K": 33, "start": 3, "stop": 8}),
        Case("fp4", {"N": 5, "K": 256, "blocksize": 256, "code": "fp4"}),
        Case("no_rows", {"N": 0, "K": 64}),
    ),
    timed=(
        Case("8b_gate_up", {"N": 28672, "K": 4096}),
        Case("8b_down", {"N": 4096, "K": 14336}),
        Case("2b_gate_up", {"N": 18432, "K": 2304}),
        Case("0.6b_gate_up", {"N": 6144, "K": 1024}),
        Case("0.6b_down", {"N": 1024, "K": 3072}),
    ),
    tolerance=_TOLERANCE,
    traffic=_traffic,
    compilations=tuple(_compilation(nested, unit) for nested in (True, False) for unit in (8, 1)),
    notes=f"codes {', '.join(CODES)}; equal to bitsandbytes bit for bit",
)
