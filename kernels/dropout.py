"""Dropout whose mask is a function of seed, row and column: nothing is kept for the backward pass.

    y = x · keep / (1 - p)        keep = mix(mix(row ^ seed) + column · φ) >= p · 2^32

with a 32-bit integer mixer (the "lowbias32" permutation by C. Wellons, public domain) and φ the golden
ratio's odd constant. The same integers come out on every device, so that a CPU checks a GPU. The seed is a
tensor: a replayed CUDA graph reads the one of its step.

Legend: T rows, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from .backend import uses_triton
from .rows import accumulation_type, addressable, output, row_stride
from .spec import Case, Compilation, Inputs, KernelSpec, bytes_of

_ROWS, _BLOCK = 4, 256
_WORD = 0xFFFFFFFF
_STEP = 0x9E3779B1


@triton.jit
def mix(x):
    """A permutation of 32-bit words that leaves no trace of their order."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def kept(row, column, seed, threshold):
    """Whether the elements of these rows and columns stay; ``row`` (R,), ``column`` (C,) -> (R, C)."""
    start = row_word(row, seed)
    return stays(start[:, None], column[None, :], threshold)


@triton.jit
def row_word(row, seed):
    """What the words of a row begin with."""
    return mix(row.to(tl.uint32) ^ seed.to(tl.uint32))


@triton.jit
def stays(start, column, threshold):
    """Whether an element stays, by its row's word and its column; the two are broadcast."""
    return mix(start + column.to(tl.uint32) * 0x9E3779B1) >= threshold.to(tl.uint32)


@triton.jit(do_not_specialize=["threshold"])
def _dropout_kernel(
    x, y, seed, threshold, factor, rows, columns, x_row, y_row, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    places = row[:, None].to(tl.int64)
    value = tl.load(x + places * x_row + column[None, :], mask=mask, other=0.0).to(tl.float32)
    value = tl.where(kept(row, column, tl.load(seed), threshold), value * factor, 0.0)
    tl.store(y + places * y_row + column[None, :], value.to(y.dtype.element_ty), mask=mask)


def threshold_of(probability: float) -> int:
    """What a word has to reach for its element to stay, as a signed 64-bit number."""
    return min(_WORD, round(probability * 2**32))


def dropout_forward(
    x_TD: torch.Tensor, probability: float, seed: torch.Tensor, *, out_TD: torch.Tensor | None = None
) -> torch.Tensor:
    """x with elements dropped; the same call on a gradient is its backward pass.

    Args:
        x_TD: rows of any stride.
        probability: of an element's being dropped, in [0, 1).
        seed: int32, one number, on ``x_TD``'s device.
        out_TD: where the result goes; may be ``x_TD``.
    """
    out_TD = output(out_TD, x_TD)
    if not uses_triton(x_TD) or x_TD.dtype == torch.float64 or not x_TD.numel():
        return out_TD.copy_(reference(x_TD, probability, seed))
    x, (rows, columns) = addressable(x_TD), x_TD.shape
    _dropout_kernel[(triton.cdiv(rows, _ROWS), triton.cdiv(columns, _BLOCK))](
        x, out_TD, seed, threshold_of(probability), 1 / (1 - probability), rows, columns,
        row_stride(x), row_stride(out_TD), ROWS=_ROWS, BLOCK=_BLOCK,
    )  # fmt: skip
    return out_TD


def kept_reference(
    row: torch.Tensor, column: torch.Tensor, seed: torch.Tensor, probability: float
) -> torch.Tensor:
    """:func:`kept` in plain torch: the two, int64, are broadcast; words are their lower halves."""
    start = _mix_reference((row ^ seed.long()) & _WORD)
    return _mix_reference((start + column * _STEP) & _WORD) >= threshold_of(probability)


def _mix_reference(x: torch.Tensor) -> torch.Tensor:
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _WORD
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: torch.Tensor, probability: float, seed: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(seed)
        ctx.probability = probability
        return dropout_forward(x_TD, probability, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (seed,) = ctx.saved_tensors
        return dropout_forward(dy_TD, ctx.probability, seed), None, None


def dropout(x_TD: torch.Tensor, probability: float, seed: torch.Tensor) -> torch.Tensor:
    """:func:`dropout_forward`, differentiable."""
    return _Dropout.apply(x_TD, probability, seed)


def reference(x_TD: torch.Tensor, probability: float, seed: torch.Tensor) -> torch.Tensor:
    """The same in plain torch."""
    row, column = (torch.arange(size, device=x_TD.device) for size in x_TD.shape)
    wide_TD = x_TD.to(accumulation_type(x_TD.dtype)) * (1 / (1 - probability))
    return torch.where(kept_reference(row[:, None], column, seed, probability), wide_TD, 0).to(x_TD.dtype)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    T, D = case.sizes["T"], case.sizes["D"]
    generator = torch.Generator(device).manual_seed(seed)
    wider = torch.randn(T, D + 8, generator=generator, device=device).to(dtype)
    return {
        "x_TD": wider[:, :D],
        "probability": case.sizes["probability"],
        "seed": torch.tensor([1234567 + seed], dtype=torch.int32, device=device),
    }


SPEC = KernelSpec(
    name="dropout",
    operation=dropout,
    reference=reference,
    inputs=_inputs,
    cases=(
        Case("tenth", {"T": 9, "D": 64, "probability": 0.1}),
        Case("odd", {"T": 7, "D": 301, "probability": 0.5}),
        Case("none", {"T": 5, "D": 16, "probability": 0.0}),
        Case("empty", {"T": 0, "D": 16, "probability": 0.3}),
    ),
    timed=(Case("bge_m3", {"T": 8192, "D": 1024, "probability": 0.1}),),
    tolerance={torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3},
    traffic=lambda inputs: 2 * bytes_of(inputs["x_TD"]),
    backward_traffic=lambda inputs: 2 * bytes_of(inputs["x_TD"]),
    differentiable=("x_TD",),
    compilations=(
        Compilation(
            _dropout_kernel,
            {
                **{"x": "*T", "y": "*T", "seed": "*i32", "threshold": "i64", "factor": "fp32"},
                **dict.fromkeys(("rows", "columns", "x_row", "y_row"), "i32"),
                **dict.fromkeys(("ROWS", "BLOCK"), "constexpr"),
            },
            {"ROWS": _ROWS, "BLOCK": _BLOCK},
        ),
    ),
)
