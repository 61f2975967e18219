"""int8 weights with a scale for each row, as LLM.int8() stores them, to dense ones.

    W[n, k] = CB[n, k] * SCB[n] / 127

Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339. The division is a product with the rounded 1/127, after
the product with the scale, as in bitsandbytes: the values are bitsandbytes' bit for bit.

Legend: N output features (rows), K input features.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .backend import interpreting, uses_triton
from .nf4 import check_out
from .rows import addressable
from .spec import Case, Compilation, Inputs, KernelSpec, bytes_of

_RECIPROCAL = tl.constexpr(1 / 127)
_NARROW, _WIDE = (4, 1024), (1, 2048)  # rows and columns of a program: where rows have one block, else


@triton.jit
def _dequantize(
    data_ptr,
    scale_ptr,
    out_ptr,
    data_stride,
    out_stride,
    N,
    K,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program has ``ROWS`` rows and ``COLUMNS`` columns; those after each other share rows."""
    blocks = tl.cdiv(K, COLUMNS)
    program = tl.program_id(0)
    row = (program // blocks) * ROWS + tl.arange(0, ROWS)
    column = ((program % blocks) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    mask = (row < N)[:, None] & (column < K)
    wide_row = row.to(tl.int64)[:, None]
    # Eight a thread are 16 bytes of output; 16 bytes of input would have them exchanged in between.
    source = tl.max_contiguous(wide_row * data_stride + column, [1, 8])
    data = tl.load(data_ptr + source, mask=mask, other=0).to(tl.float32)
    scale = tl.load(scale_ptr + row, mask=row < N, other=0.0).to(tl.float32)
    value = data * scale[:, None] * _RECIPROCAL
    tl.store(out_ptr + wide_row * out_stride + column, value.to(out_ptr.dtype.element_ty), mask=mask)


def dequantize_int8(
    data_NK: torch.Tensor,
    scale_N: torch.Tensor,
    out: torch.Tensor | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """The dense weight; for some rows, give slices of all tensors.

    Args:
        data_NK: int8 (N, K), row-strided or not ("CB").
        scale_N: fp32 (N,), the largest magnitude of each row ("SCB").
        out: where to write, (N, K) of any row stride; its dtype is the result's.
        dtype: fp32, bf16 or fp16, when out is not given.

    Returns:
        (N, K).

    Raises:
        ValueError: for scales or an output of another shape.
    """
    rows, columns = data_NK.shape
    if scale_N.numel() != rows:
        raise ValueError(f"{scale_N.numel()} scales for {rows} rows")
    if not uses_triton(data_NK):
        return reference(data_NK, scale_N, out, dtype=dtype)
    if out is None:
        out = torch.empty((rows, columns), dtype=dtype, device=data_NK.device)
    if check_out(out, (rows, columns)).numel() == 0:
        return out
    data_NK = addressable(data_NK)
    tile = _NARROW if columns <= _NARROW[1] else _WIDE
    _dequantize[(triton.cdiv(rows, tile[0]) * triton.cdiv(columns, tile[1]),)](
        data_NK,
        scale_N.contiguous(),
        out,
        data_NK.stride(0),
        out.stride(0),
        rows,
        columns,
        ROWS=tile[0],
        COLUMNS=tile[1],
        num_warps=4,
    )
    return out


def reference(
    data_NK: torch.Tensor,
    scale_N: torch.Tensor,
    out: torch.Tensor | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """As :func:`dequantize_int8`, in plain torch."""
    rows, columns = data_NK.shape
    value_NK = data_NK * scale_N.view(-1, 1) * (1 / 127)
    return value_NK.to(dtype) if out is None else check_out(out, (rows, columns)).copy_(value_NK)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    rows, columns = case.sizes["N"], case.sizes["K"]
    generator = torch.Generator(device).manual_seed(seed)
    stride = columns + case.sizes.get("pad", 0)
    data = torch.randint(-127, 128, (rows, stride), generator=generator, device=device, dtype=torch.int8)
    scale_N = torch.rand(rows, generator=generator, device=device) + 0.01
    return {"data_NK": data[:, :columns], "scale_N": scale_N, "dtype": dtype}


def _traffic(inputs: Inputs) -> int:
    data_NK = inputs["data_NK"]
    return bytes_of(data_NK, inputs["scale_N"]) + data_NK.numel() * inputs["dtype"].itemsize


_SIGNATURE = {
    "data_ptr": "*i8",
    "scale_ptr": "*fp32",
    "out_ptr": "*T",
    "data_stride": "i32",
    "out_stride": "i32",
    "N": "i32",
    "K": "i32",
    "ROWS": "constexpr",
    "COLUMNS": "constexpr",
}

SPEC = KernelSpec(
    name="int8",
    operation=dequantize_int8,
    reference=reference,
    inputs=_inputs,
    cases=(
        Case("plain", {"N": 6, "K": 256}),
        Case("strided", {"N": 9, "K": 100, "pad": 28}),
        Case("odd", {"N": 5, "K": 1031}),
        Case("no_rows", {"N": 0, "K": 64}),
    ),
    timed=(
        Case("8b_gate_up", {"N": 28672, "K": 4096}),
        Case("8b_down", {"N": 4096, "K": 14336}),
        Case("0.6b_gate_up", {"N": 6144, "K": 1024}),
        Case("0.6b_down", {"N": 1024, "K": 3072}),
    ),
    # The check's reference multiplies in float64. Triton's interpreter truncates to bf16 where a GPU rounds.
    tolerance={
        torch.float32: 2e-7,
        torch.bfloat16: 2**-7 if interpreting() else 2**-9,
        torch.float16: 2**-12,
    },
    traffic=_traffic,
    compilations=tuple(
        Compilation(_dequantize, _SIGNATURE, {"ROWS": rows, "COLUMNS": columns})
        for rows, columns in (_NARROW, _WIDE)
    ),
)
