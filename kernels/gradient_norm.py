"""The norm of a flat gradient and what clipping multiplies with, without leaving the device.

A grid of fixed size sums squares, in fp32 within a tile and in fp64 across; a second launch adds the partial
sums. Both orders are fixed, so the same gradient has the same norm, bit for bit.

Legend: P numbers in the flat buffer.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .backend import uses_triton
from .spec import Case, Compilation, Inputs, KernelSpec, bytes_of

_BLOCK, _PROGRAMS = 4096, 1024


@triton.jit
def sum_of_squares_kernel(x_in, partial, numel, BLOCK: tl.constexpr):
    """Each program's share of the sum of squares; a fixed order of additions for a given grid."""
    total = tl.zeros((), tl.float64)
    stride = tl.num_programs(0).to(tl.int64) * BLOCK
    start = tl.program_id(0).to(tl.int64) * BLOCK
    while start < numel:
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_in + at, mask=at < numel, other=0.0).to(tl.float32)
        total += tl.sum(x * x).to(tl.float64)
        start += stride
    tl.store(partial + tl.program_id(0), total)


@triton.jit
def norm_kernel(partial, norm, coefficient, max_norm, count, BLOCK: tl.constexpr):
    """The norm from the partial sums, and what clipping to ``max_norm`` multiplies gradients with."""
    at = tl.arange(0, BLOCK)
    total = tl.sum(tl.load(partial + at, mask=at < count, other=0.0))
    root = tl.sqrt(total).to(tl.float32)
    tl.store(norm, root)
    ratio = max_norm / (root + 1e-6)
    # Not a minimum: a NaN must go through, as in torch.
    tl.store(coefficient, tl.where(ratio > 1.0, 1.0, ratio))


def norm_and_clip(gradient_P: torch.Tensor, max_norm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient's Euclidean norm and min(1, max_norm / norm), fp32 0-d on the device.

    Squares are summed in fp32 within a tile and in fp64 across, in the same order every time.
    """
    if gradient_P.numel() == 0 or not uses_triton(gradient_P):
        norm = torch.linalg.vector_norm(gradient_P)
        return norm, clip_coefficient(norm, max_norm)
    gradient_P = gradient_P.contiguous()
    programs = min(_PROGRAMS, -(-gradient_P.numel() // _BLOCK))
    partial = torch.empty(programs, dtype=torch.float64, device=gradient_P.device)
    both = torch.empty(2, dtype=torch.float32, device=gradient_P.device)
    sum_of_squares_kernel[(programs,)](gradient_P, partial, gradient_P.numel(), BLOCK=_BLOCK, num_warps=8)
    norm_kernel[(1,)](partial, both[0], both[1], float(max_norm), programs, BLOCK=_PROGRAMS, num_warps=4)
    return both[0], both[1]


def gradient_norm(gradient_P: torch.Tensor) -> torch.Tensor:
    """The Euclidean norm of ``gradient_P`` (P,), fp32 0-d on the device; deterministic."""
    return norm_and_clip(gradient_P, float("inf"))[0]


def clip_coefficient(norm: torch.Tensor, max_norm: float) -> torch.Tensor:
    """min(1, max_norm / (norm + 1e-6)), 0-d on the device, as ``torch.nn.utils.clip_grad_norm_`` has it."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


def reference(gradient_P: torch.Tensor, max_norm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm and coefficient by torch."""
    norm = torch.linalg.vector_norm(gradient_P)
    return norm, clip_coefficient(norm, max_norm)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)
    gradient = torch.randn(case.sizes["P"], generator=generator, device=device, dtype=dtype)
    return {"gradient_P": gradient, "max_norm": 1.0}


def _traffic(inputs: Inputs) -> int:
    return bytes_of(inputs["gradient_P"])


SPEC = KernelSpec(
    name="gradient_norm",
    operation=norm_and_clip,
    reference=reference,
    inputs=_inputs,
    cases=(Case("odd", {"P": 10_001}), Case("one", {"P": 1}), Case("empty", {"P": 0})),
    # LoRA of rank 16 on all linear layers.
    timed=(Case("8b", {"P": 41_943_040}), Case("0.6b", {"P": 10_092_544})),
    tolerance={torch.float32: 1e-6},
    traffic=_traffic,
    dtypes=(torch.float32,),
    compilations=(
        Compilation(
            sum_of_squares_kernel,
            {"x_in": "*fp32", "partial": "*fp64", "numel": "i32", "BLOCK": "constexpr"},
            {"BLOCK": _BLOCK},
            num_warps=8,
        ),
        Compilation(
            norm_kernel,
            {"partial": "*fp64", "norm": "*fp32", "coefficient": "*fp32", "max_norm": "fp32"}
            | {"count": "i32", "BLOCK": "constexpr"},
            {"BLOCK": _PROGRAMS},
        ),
    ),
)
