"""Our Triton attention: tile sizes, launches and ahead-of-time compilations of `attention_triton_kernels`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from .attention_choice import Capability, nvidia_capability
from .attention_reference import AttentionOptions
from .attention_triton_kernels import (
    bounds_kernel,
    forward_kernel,
    key_gradient_kernel,
    query_gradient_kernel,
)
from .backend import interpreting
from .dropout import threshold_of
from .spec import Compilation


class Tiles(NamedTuple):
    """Launch configuration: rows that stay in a program, rows a step of its loop reads, warps, stages."""

    tile: int
    step: int
    warps: int
    stages: int


_CANDIDATES = (
    Tiles(128, 128, 8, 2),
    Tiles(128, 64, 8, 2),
    Tiles(64, 64, 4, 2),
    Tiles(64, 32, 4, 2),
    Tiles(64, 32, 8, 2),
    Tiles(64, 32, 4, 1),
    Tiles(32, 32, 4, 1),
    Tiles(32, 16, 4, 1),
    Tiles(16, 16, 4, 1),
)
_RESIDENT = {"forward": 1, "query_gradient": 2, "key_gradient": 2}
"""Operands of a whole tile that a program keeps in shared memory."""

_SHARED_KIB = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}
OVERRIDES: dict[str, Tiles] = {}
"""Kernel name to tiles that replace the table's; the benchmark's sweep sets them."""


def _largest(kernel: str, capability: Capability, longest: int) -> int:
    """The first candidate worth considering."""
    if capability is not None and capability < (8, 0):
        return 7  # Triton has no tensor cores there: products run on registers, which larger tiles overflow
    if longest <= 128:
        return 2  # a tile sees little beyond itself: the larger it is, the more of its scores are masked
    # 128 x 128 needs operands that stay in shared memory, as Hopper's products have them.
    return 0 if capability is not None and capability[0] in (9, 10) and kernel == "forward" else 1


def tiles(kernel: str, columns: int, itemsize: int, longest: int, capability: Capability) -> Tiles:
    """The largest candidate whose operands fit in shared memory and whose accumulators fit in registers.

    Args:
        kernel: ``forward``, ``query_gradient`` or ``key_gradient``.
        columns: of one head's row, padded to a power of two.
        itemsize: bytes of an element.
        longest: tokens of the longest document.
        capability: NVIDIA compute capability; None: another maker's GPU, taken to have 64 KiB.
    """
    if kernel in OVERRIDES:
        return OVERRIDES[kernel]
    if interpreting():
        return Tiles(32, 16, 4, 1)
    kib = 64 if capability is None else _SHARED_KIB.get(10 * capability[0] + capability[1], 64)
    registers = 128 if kernel == "forward" else 64  # a thread's, for one accumulator; gradients have several
    for candidate in _CANDIDATES[_largest(kernel, capability, longest) :]:
        rows = _RESIDENT[kernel] * candidate.tile + 2 * candidate.stages * candidate.step
        fits = rows * columns * itemsize <= 0.9 * 1024 * kib
        if fits and candidate.tile * columns <= registers * 32 * candidate.warps:
            return candidate
    return _CANDIDATES[-1]


def document_bounds(offsets_N1: torch.Tensor, tokens: int, options: AttentionOptions) -> torch.Tensor:
    """(4, T) int32: the keys [first, stop) a token sees, and the queries [seen_from, seen_to) that see it."""
    documents = offsets_N1.numel() - 1
    back, ahead = options.reach(tokens)
    bounds_4T = torch.empty(4, tokens, dtype=torch.int32, device=offsets_N1.device)
    block = 256
    bounds_kernel[(triton.cdiv(tokens, block),)](
        offsets_N1, bounds_4T, tokens, documents, documents.bit_length(), back, ahead, BLOCK=block
    )
    return bounds_4T


def _launch(
    kernel: Any,
    name: str,
    arguments: tuple[Any, ...],
    q: torch.Tensor,
    k: torch.Tensor,
    longest: int,
    options: AttentionOptions,
    seed: torch.Tensor | None,
) -> None:
    tokens, heads, head_size = q.shape
    block_e = max(16, triton.next_power_of_2(head_size))
    choice = tiles(name, block_e, q.element_size(), longest, nvidia_capability(q.device))
    groups = k.shape[1]
    grid = (groups if name == "key_gradient" else heads, triton.cdiv(tokens, choice.tile))
    kernel[grid](
        *arguments,
        options.factor(head_size),
        options.softcap or 1.0,
        seed,
        threshold_of(options.dropout),
        1 / (1 - options.dropout),
        MEMBERS=heads // groups,
        E=head_size,
        BLOCK_E=block_e,
        TILE=choice.tile,
        STEP=choice.step,
        CAPPED=options.softcap is not None,
        DROPS=options.dropout > 0,
        CAST=interpreting(),
        num_warps=choice.warps,
        num_stages=choice.stages,
    )


def _strides(*buffers: torch.Tensor) -> tuple[int, ...]:
    """Token and head stride of each."""
    return tuple(stride for buffer in buffers for stride in (buffer.stride(0), buffer.stride(1)))


def forward(
    q_THE: torch.Tensor,
    k_TGE: torch.Tensor,
    v_TGE: torch.Tensor,
    offsets_N1: torch.Tensor,
    longest: int,
    options: AttentionOptions,
    out_THE: torch.Tensor | None = None,
    seed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """Output (T, H, E), log-sum-exp (H, T), and for the backward pass the documents' bounds and the seed."""
    tokens, heads, _ = q_THE.shape
    o = torch.empty(q_THE.shape, dtype=q_THE.dtype, device=q_THE.device) if out_THE is None else out_THE
    lse_HT = torch.empty(heads, tokens, dtype=torch.float32, device=q_THE.device)
    bounds = document_bounds(offsets_N1, tokens, options)
    strides = _strides(q_THE, k_TGE, v_TGE, o)
    arguments = (q_THE, k_TGE, v_TGE, o, lse_HT, bounds, tokens, *strides)
    _launch(forward_kernel, "forward", arguments, q_THE, k_TGE, longest, options, seed)
    return o, lse_HT, (bounds,) if seed is None else (bounds, seed)


def backward(
    do_THE: torch.Tensor,
    q_THE: torch.Tensor,
    k_TGE: torch.Tensor,
    v_TGE: torch.Tensor,
    o_THE: torch.Tensor,
    lse_HT: torch.Tensor,
    extra: tuple[torch.Tensor, ...],
    offsets_N1: torch.Tensor,
    longest: int,
    options: AttentionOptions,
    given: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v, written into ``given`` where it is given."""
    tokens, q, k, v = q_THE.shape[0], q_THE, k_TGE, v_TGE
    if given is None:
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    else:
        dq, dk, dv = given
    bounds, seed = extra[0], extra[1] if len(extra) > 1 else None
    delta_HT = torch.empty_like(lse_HT)
    strides = _strides(do_THE, q, k, v, o_THE, dq)
    arguments = (do_THE, q, k, v, o_THE, lse_HT, delta_HT, dq, bounds, tokens, *strides)
    _launch(query_gradient_kernel, "query_gradient", arguments, q, k, longest, options, seed)
    strides = _strides(do_THE, q, k, v, dk, dv)
    arguments = (do_THE, q, k, v, lse_HT, delta_HT, dk, dv, bounds, tokens, *strides)
    _launch(key_gradient_kernel, "key_gradient", arguments, q, k, longest, options, seed)
    return dq, dk, dv


_FLOATS = ("do", "q", "k", "v", "o", "dq", "dk", "dv")
_STATISTICS = ("lse", "delta")
_SPILLS = {75: 1024, 80: 256, 90: 256, 100: 512, 120: 128}
"""Capability x 10 to spilled bytes a thread that its tiles are known to cost at head size 128, mostly in the
gradient of the keys. 7.5 has no tensor cores in Triton, and elsewhere libraries serve what has no softcap."""


def _compilation(
    kernel: Any, name: str, head_size: int, capability: int, *, capped: bool = False, drops: bool = False
) -> Compilation:
    """What a launch on that capability (x 10), and on no other, compiles."""
    choice = tiles(name, triton.next_power_of_2(head_size), 2, 4096, divmod(capability, 10))
    constants = {
        "MEMBERS": 4,
        "E": head_size,
        "BLOCK_E": triton.next_power_of_2(head_size),
        "TILE": choice.tile,
        "STEP": choice.step,
        "CAPPED": capped,
        "DROPS": drops,
        "CAST": False,
    }
    types = dict.fromkeys(_FLOATS, "*T") | dict.fromkeys(_STATISTICS, "*fp32")
    types |= {"bounds": "*i32", "seed": "*i32", "threshold": "i64"}
    types |= dict.fromkeys(("scale", "softcap", "kept"), "fp32") | dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, "i32") for argument in kernel.arg_names}
    limit = _SPILLS.get(capability, 32)
    return Compilation(
        kernel, signature, constants, choice.warps, choice.stages, capability, capability, limit
    )


def _compilations() -> tuple[Compilation, ...]:
    bounds_types = {"offsets": "*i32", "bounds": "*i32", "BLOCK": "constexpr"}
    signature = {argument: bounds_types.get(argument, "i32") for argument in bounds_kernel.arg_names}
    found = [Compilation(bounds_kernel, signature, {"BLOCK": 256})]
    kernels = {
        "forward": forward_kernel,
        "query_gradient": query_gradient_kernel,
        "key_gradient": key_gradient_kernel,
    }
    for name, kernel in kernels.items():
        for capability in (75, 80, 89, 90, 100, 120):
            found.append(_compilation(kernel, name, 128, capability))
            found.append(_compilation(kernel, name, 48, capability, capped=True))
            found.append(_compilation(kernel, name, 64, capability, drops=True))
    return tuple(found)


COMPILATIONS = _compilations()
