"""What every kernel file says about itself: a `KernelSpec`.

Parity tests, the ahead-of-time compilation, the kernel benchmark and ``whet doctor --kernels`` all iterate
:data:`whet.kernels.registry.SPECS`; a new kernel needs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Inputs = dict[str, Any]
"""Keyword arguments of an operation: tensors and plain values."""


@dataclass(frozen=True)
class Case:
    """One set of sizes and options that a kernel is checked or timed at.

    Args:
        name: short, e.g. ``odd`` or ``8b``.
        sizes: what ``KernelSpec.inputs`` reads: lengths, ranks, flags.
    """

    name: str
    sizes: Mapping[str, Any]

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Compilation:
    """One ahead-of-time compilation of a Triton function.

    Args:
        function: the ``@triton.jit`` function.
        signature: argument name to Triton type; ``*T`` stands for a pointer to the case's float type, which
            is fp16 below compute capability 8.0 and bf16 from there on; constants are ``constexpr``.
        constants: values of the ``constexpr`` arguments.
        num_warps: as the launch uses.
        num_stages: as the launch uses.
        least_capability: compute capability x 10 that the function needs, e.g. 89 for FP8 conversion.
        most_capability: where a launch takes other constants from the next generation on.
        spill_limit: spilled bytes a thread that are accepted; more than the default needs a reason beside it.
    """

    function: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    least_capability: int = 75
    most_capability: int = 120
    spill_limit: int = 32


@dataclass(frozen=True)
class KernelSpec:
    """An operation, its reference, and how the two are compared and timed.

    Args:
        name: one name from file to operation to test to benchmark row.
        operation: the public function; runs Triton or the reference by :func:`.backend.uses_triton`
            and is differentiable in its floating-point tensors (unless ``differentiable`` is empty).
        reference: plain torch, same signature, right for float64 too; differentiated by autograd.
        inputs: ``(case, dtype, device, seed) -> Inputs``; fresh random numbers, some tensors non-contiguous.
        cases: sizes for parity; odd, empty and strided ones among them, small enough for the interpreter.
        timed: sizes for the benchmark, 8B's and 0.6B's shapes first.
        tolerance: dtype to the largest relative error norm(out - ref64) / norm(ref64), forward and backward.
        traffic: ``(inputs) -> bytes`` the operation has to move, forward (each input once, each output once).
        flops: ``(inputs) -> floating-point operations`` of the forward pass; 0 where bytes decide. It may
            count more for inputs that require gradients, where the forward pass already makes those.
        differentiable: names of the inputs whose gradients are compared.
        compilations: what the launches compile, for a check without a GPU.
        dtypes: float types the operation takes.
        backward_traffic: bytes of the backward pass; None where it is not timed alone.
        backward_flops: floating-point operations of the backward pass, likewise.
        frozen: differentiable inputs that adapter training leaves frozen: timed without their gradients.
    """

    name: str
    operation: Callable[..., Any]
    reference: Callable[..., Any]
    inputs: Callable[[Case, torch.dtype, torch.device, int], Inputs]
    cases: tuple[Case, ...]
    timed: tuple[Case, ...]
    tolerance: Mapping[torch.dtype, float]
    traffic: Callable[[Inputs], int]
    flops: Callable[[Inputs], int] = lambda inputs: 0
    differentiable: tuple[str, ...] = ()
    compilations: tuple[Compilation, ...] = ()
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
    backward_traffic: Callable[[Inputs], int] | None = None
    backward_flops: Callable[[Inputs], int] | None = None
    frozen: tuple[str, ...] = ()
    notes: str = field(default="", kw_only=True)


def relative_error(value: torch.Tensor, exact: torch.Tensor) -> float:
    """norm(value - exact) / norm(exact) in float64; infinite if ``value`` is not finite anywhere.

    Where ``exact`` is zero everywhere, the norm of ``value`` itself. Empty tensors have no error.
    """
    if value.shape != exact.shape:
        raise ValueError(f"shapes differ: {tuple(value.shape)} and {tuple(exact.shape)}")
    value, exact = value.detach().double().cpu(), exact.detach().double().cpu()
    if not torch.isfinite(value).all():
        return float("inf")
    scale = float(exact.norm()) or 1.0
    return float((value - exact).norm()) / scale


def bytes_of(*tensors: torch.Tensor | None) -> int:
    """Bytes of the tensors' elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
