"""A document's token vectors as one vector: their mean, the first or the last, over packed rows.

Documents lie end to end in (T, D); ``offsets`` says where each begins. Sums are in fp32 and in the tokens'
order, so that a run repeats bit by bit; the result is fp32, since similarities are taken of it next. An empty
document pools to zeros.

Legend: T tokens, D width, N documents.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from .backend import uses_triton
from .rows import accumulation_type, addressable
from .spec import Case, Compilation, Inputs, KernelSpec

MODES = ("mean", "first", "last")
_STEP, _BLOCK = 16, 128  # tokens at a time and columns of a program


@triton.jit
def _span(offsets):
    """Where this program's document begins and ends."""
    document = tl.program_id(0)
    return tl.load(offsets + document), tl.load(offsets + document + 1)


@triton.jit
def _pool_kernel(x, x_stride, offsets, y, width, MODE: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr):
    begin, end = _span(offsets)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    if MODE == "mean":
        total = tl.zeros((STEP, BLOCK), dtype=tl.float32)
        for start in range(begin, end, STEP):
            row = start + tl.arange(0, STEP)
            mask = (row < end)[:, None] & inside[None, :]
            places = x + row[:, None].to(tl.int64) * x_stride + column[None, :]
            total += tl.load(places, mask=mask, other=0.0).to(tl.float32)
        pooled = tl.sum(total, 0) / tl.maximum(end - begin, 1).to(tl.float32)
    else:
        row = begin if MODE == "first" else end - 1
        some = inside & (end > begin)
        pooled = tl.load(x + tl.cast(row, tl.int64) * x_stride + column, mask=some, other=0.0).to(tl.float32)
    tl.store(y + tl.program_id(0).to(tl.int64) * width + column, pooled, mask=inside)


@triton.jit
def _pool_backward_kernel(
    dy, dy_stride, offsets, dx, width, MODE: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr
):
    begin, end = _span(offsets)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    given = tl.load(dy + tl.program_id(0).to(tl.int64) * dy_stride + column, mask=inside, other=0.0)
    given = given.to(tl.float32)
    if MODE == "mean":
        given = given / tl.maximum(end - begin, 1).to(tl.float32)
    for start in range(begin, end, STEP):
        row = start + tl.arange(0, STEP)
        share = tl.zeros((STEP, BLOCK), dtype=tl.float32) + given[None, :]
        if MODE == "first":
            share = tl.where((row == begin)[:, None], share, 0.0)
        if MODE == "last":
            share = tl.where((row == end - 1)[:, None], share, 0.0)
        places = dx + row[:, None].to(tl.int64) * width + column[None, :]
        tl.store(places, share.to(dx.dtype.element_ty), mask=(row < end)[:, None] & inside[None, :])


def segment_pool_forward(x_TD: torch.Tensor, offsets_N1: torch.Tensor, mode: str) -> torch.Tensor:
    """Pooled vectors (N, D) in fp32 (float64 for float64).

    Raises:
        ValueError: for a ``mode`` that is none of :data:`MODES`.
    """
    if mode not in MODES:
        raise ValueError(f"unknown pooling {mode!r}; known are {', '.join(MODES)}")
    if not uses_triton(x_TD) or x_TD.dtype == torch.float64 or not x_TD.numel():
        return reference(x_TD, offsets_N1, mode)
    x, documents, width = addressable(x_TD), len(offsets_N1) - 1, x_TD.shape[1]
    y_ND = torch.empty(documents, width, dtype=torch.float32, device=x.device)
    _pool_kernel[(documents, triton.cdiv(width, _BLOCK))](
        x, x.stride(0), offsets_N1, y_ND, width, MODE=mode, STEP=_STEP, BLOCK=_BLOCK
    )
    return y_ND


def segment_pool_backward(
    dy_ND: torch.Tensor, offsets_N1: torch.Tensor, mode: str, tokens: int, dtype: torch.dtype
) -> torch.Tensor:
    """Gradient of the tokens' vectors (T, D) in ``dtype``; the offsets have to end at T."""
    if not uses_triton(dy_ND) or dy_ND.dtype == torch.float64 or not dy_ND.numel() or not tokens:
        return _reference_backward(dy_ND, offsets_N1, mode, tokens).to(dtype)
    dy, (documents, width) = addressable(dy_ND), dy_ND.shape
    dx_TD = torch.empty(tokens, width, dtype=dtype, device=dy.device)
    _pool_backward_kernel[(documents, triton.cdiv(width, _BLOCK))](
        dy, dy.stride(0), offsets_N1, dx_TD, width, MODE=mode, STEP=_STEP, BLOCK=_BLOCK
    )
    return dx_TD


class _SegmentPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: torch.Tensor, offsets_N1: torch.Tensor, mode: str) -> torch.Tensor:
        ctx.save_for_backward(offsets_N1)
        ctx.mode, ctx.tokens, ctx.dtype = mode, len(x_TD), x_TD.dtype
        return segment_pool_forward(x_TD, offsets_N1, mode)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (offsets_N1,) = ctx.saved_tensors
        return segment_pool_backward(dy_ND, offsets_N1, ctx.mode, ctx.tokens, ctx.dtype), None, None


def segment_pool(x_TD: torch.Tensor, offsets_N1: torch.Tensor, mode: str = "mean") -> torch.Tensor:
    """One vector a document (N, D), fp32; differentiable in ``x_TD``.

    Args:
        x_TD: rows of any stride.
        offsets_N1: int32, where each document begins, T at the end; repeated values are empty documents.
        mode: of :data:`MODES`.

    Raises:
        ValueError: for another ``mode``.
    """
    return _SegmentPool.apply(x_TD, offsets_N1, mode)


def reference(x_TD: torch.Tensor, offsets_N1: torch.Tensor, mode: str = "mean") -> torch.Tensor:
    """The same in plain torch."""
    wide_TD = x_TD.to(accumulation_type(x_TD.dtype))
    starts, lengths = offsets_N1[:-1].long(), offsets_N1.diff().long()
    if not len(x_TD):
        return wide_TD.new_zeros(len(starts), x_TD.shape[1])
    if mode == "mean":
        document_T = torch.repeat_interleave(torch.arange(len(starts), device=x_TD.device), lengths)
        summed_ND = wide_TD.new_zeros(len(starts), x_TD.shape[1]).index_add(0, document_T, wide_TD)
        return summed_ND / lengths.clamp(min=1)[:, None]
    places = starts if mode == "first" else offsets_N1[1:].long() - 1
    return wide_TD[places.clamp(0, len(x_TD) - 1)] * (lengths > 0)[:, None]


def _reference_backward(
    dy_ND: torch.Tensor, offsets_N1: torch.Tensor, mode: str, tokens: int
) -> torch.Tensor:
    wide_ND, lengths = dy_ND.to(accumulation_type(dy_ND.dtype)), offsets_N1.diff().long()
    if mode == "mean":
        document_T = torch.repeat_interleave(torch.arange(len(lengths), device=dy_ND.device), lengths)
        return (wide_ND / lengths.clamp(min=1)[:, None])[document_T]
    places = offsets_N1[:-1] if mode == "first" else offsets_N1[1:] - 1
    some = lengths > 0
    dx_TD = wide_ND.new_zeros(tokens, dy_ND.shape[1])
    return dx_TD.index_copy(0, places[some].long(), wide_ND[some])


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    lengths, width = case.sizes["lengths"], case.sizes["width"]
    generator = torch.Generator(device).manual_seed(seed)
    wider = torch.randn(sum(lengths), width + 8, generator=generator, device=device).to(dtype)
    offsets = torch.tensor((0, *lengths)).cumsum(0).to(device, torch.int32)
    return {"x_TD": wider[:, :width], "offsets_N1": offsets, "mode": case.sizes.get("mode", "mean")}


_SIGNATURE = {"offsets": "*i32", "width": "i32", **dict.fromkeys(("MODE", "STEP", "BLOCK"), "constexpr")}

SPEC = KernelSpec(
    name="segment_pool",
    operation=segment_pool,
    reference=reference,
    inputs=_inputs,
    cases=(
        *(Case(mode, {"lengths": (17, 1, 0, 33, 5), "width": 37, "mode": mode}) for mode in MODES),
        Case("even", {"lengths": (16, 16), "width": 128}),
        Case("empty", {"lengths": (0, 0), "width": 16}),
    ),
    timed=(
        Case("minilm", {"lengths": (15,) * 512, "width": 384}),
        Case("bge_m3", {"lengths": (15,) * 512, "width": 1024}),
    ),
    tolerance={torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3},
    traffic=lambda inputs: inputs["x_TD"].numel() * inputs["x_TD"].element_size(),
    backward_traffic=lambda inputs: inputs["x_TD"].numel() * inputs["x_TD"].element_size(),
    differentiable=("x_TD",),
    compilations=tuple(
        compilation
        for mode in MODES
        for compilation in (
            Compilation(
                _pool_kernel,
                {"x": "*T", "x_stride": "i32", "y": "*fp32", **_SIGNATURE},
                {"MODE": mode, "STEP": _STEP, "BLOCK": _BLOCK},
            ),
            Compilation(
                _pool_backward_kernel,
                {"dy": "*fp32", "dy_stride": "i32", "dx": "*T", **_SIGNATURE},
                {"MODE": mode, "STEP": _STEP, "BLOCK": _BLOCK},
            ),
        )
    ),
)
