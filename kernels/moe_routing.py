"""Routing of a mixture of experts: which rows go to which expert, and the sum of what comes back.

:func:`route` sorts the (token, slot) pairs by expert; everything stays on the device, so the host never waits
for a count. :func:`combine` adds up each token's rows in fp32, in the order of its slots. Routing weights are
not its concern: scaling an expert's hidden rows before its last, linear layer gives the same sum, and spares
backward the experts' outputs.

Legend: T tokens, K slots (experts a token), S = T K rows, X experts, D width.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from .backend import uses_triton
from .rows import addressable
from .spec import Case, Compilation, Inputs, KernelSpec, bytes_of

_BLOCK = 1024
_VECTOR = 8  # elements of a 16-byte access in 16-bit types


@dataclass(frozen=True)
class Routing:
    """Rows sorted by expert, rows of one expert in the tokens' order.

    Args:
        tokens_S: int32, the token of each sorted row.
        slots_S: int64, the same row among the flattened (T, K) slots: ``weights_TK.flatten()[slots_S]``.
        offsets_X1: int32, where each expert's rows begin; the last entry is S.
        positions_TK: int32, the sorted row of each token's slot.
    """

    tokens_S: torch.Tensor
    slots_S: torch.Tensor
    offsets_X1: torch.Tensor
    positions_TK: torch.Tensor


def route(experts_TK: torch.Tensor, experts: int) -> Routing:
    """The routing of ``experts_TK`` (T, K), expert numbers from 0 to ``experts`` - 1; no host sync."""
    chosen_S, slots_S = experts_TK.flatten().to(torch.int32).sort(stable=True)
    every = torch.arange(experts + 1, dtype=torch.int32, device=experts_TK.device)
    numbers = torch.arange(slots_S.shape[0], dtype=torch.int32, device=experts_TK.device)
    positions = torch.empty_like(numbers).scatter_(0, slots_S, numbers)
    return Routing(
        tokens_S=(slots_S // max(1, experts_TK.shape[1])).to(torch.int32),
        slots_S=slots_S,
        offsets_X1=torch.searchsorted(chosen_S, every, out_int32=True),
        positions_TK=positions.view(experts_TK.shape),
    )


@triton.jit
def _sum_slots_kernel(
    y, position, out, D, y_row, out_row, SLOTS: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """out[t] = the sum of the SLOTS rows of y that token t was given to, in a fixed order.

    Row strides are in units of UNIT elements: of the strides themselves Triton would notice multiples of 16
    alone, and read all others' rows element by element.
    """
    blocks = tl.cdiv(D, BLOCK)
    token = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    sum_ = tl.zeros((BLOCK,), tl.float32)
    for slot in tl.static_range(SLOTS):
        row = tl.load(position + token * SLOTS + slot).to(tl.int64)
        sum_ += tl.load(y + row * y_row * UNIT + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out + token * out_row * UNIT + d, sum_.to(out.dtype.element_ty), mask=d < D)


def sum_slots(
    y_SD: torch.Tensor, positions_TK: torch.Tensor, *, out_TD: torch.Tensor | None = None
) -> torch.Tensor:
    """out[t] = the sum over k of y[positions[t, k]], added in fp32: (T, D) of y's type.

    ``out_TD`` is written and returned where given; its rows may have any stride.
    """
    tokens, slots = positions_TK.shape
    if out_TD is None:
        out_TD = torch.empty(tokens, y_SD.shape[1], dtype=y_SD.dtype, device=y_SD.device)
    if out_TD.numel() == 0:
        return out_TD
    if not uses_triton(y_SD):
        return out_TD.copy_(reference(y_SD, positions_TK))
    y_SD = addressable(y_SD)
    grid = (tokens * triton.cdiv(y_SD.shape[1], _BLOCK),)
    unit = math.gcd(_VECTOR, y_SD.stride(0), out_TD.stride(0))
    _sum_slots_kernel[grid](
        y_SD, positions_TK, out_TD, y_SD.shape[1], y_SD.stride(0) // unit, out_TD.stride(0) // unit,
        SLOTS=slots, UNIT=unit, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return out_TD


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_SD: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(tokens)
        return sum_slots(y_SD, positions)

    @staticmethod
    def backward(ctx: Any, gradient_TD: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        (tokens,) = ctx.saved_tensors
        return gradient_TD.index_select(0, tokens), None, None


def combine(y_SD: torch.Tensor, positions_TK: torch.Tensor, tokens_S: torch.Tensor) -> torch.Tensor:
    """:func:`sum_slots`, differentiable in ``y_SD``.

    Args:
        y_SD: (S, D), the experts' outputs, sorted by expert.
        positions_TK: of :class:`Routing`.
        tokens_S: of :class:`Routing`.

    Returns:
        (T, D), of y's type.
    """
    return _Combine.apply(y_SD, positions_TK, tokens_S)


def reference(
    y_SD: torch.Tensor, positions_TK: torch.Tensor, tokens_S: torch.Tensor | None = None
) -> torch.Tensor:
    """The sum by indexing, in fp32 or wider."""
    wide = torch.promote_types(y_SD.dtype, torch.float32)
    return y_SD[positions_TK.long()].to(wide).sum(1).to(y_SD.dtype)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)
    sizes = case.sizes
    scores = torch.rand(sizes["T"], sizes["X"], generator=generator, device=device)
    routing = route(scores.topk(sizes["K"], dim=1).indices, sizes["X"])
    wider = torch.randn(sizes["T"] * sizes["K"], sizes["D"] + 8, generator=generator, device=device)
    return {
        "y_SD": wider.to(dtype)[:, : sizes["D"]],
        "positions_TK": routing.positions_TK,
        "tokens_S": routing.tokens_S,
    }


def _traffic(inputs: Inputs) -> int:
    slots = max(1, inputs["positions_TK"].shape[1])
    return bytes_of(inputs["y_SD"]) * (slots + 1) // slots + bytes_of(inputs["positions_TK"])


SPEC = KernelSpec(
    name="moe_combine",
    operation=combine,
    reference=reference,
    inputs=_inputs,
    cases=(
        Case("odd", {"T": 7, "X": 5, "K": 3, "D": 37}),
        Case("one", {"T": 2, "X": 2, "K": 1, "D": 1100}),
        Case("empty", {"T": 0, "X": 4, "K": 2, "D": 16}),
    ),
    timed=(
        Case("qwen3-30b", {"T": 8192, "X": 128, "K": 8, "D": 2048}),
        Case("mixtral", {"T": 8192, "X": 8, "K": 2, "D": 4096}),
    ),
    tolerance={torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3},
    traffic=_traffic,
    differentiable=("y_SD",),
    backward_traffic=_traffic,
    compilations=(
        Compilation(
            _sum_slots_kernel,
            {"y": "*T", "position": "*i32", "out": "*T", "D": "i32", "y_row": "i32", "out_row": "i32"}
            | dict.fromkeys(("SLOTS", "UNIT", "BLOCK"), "constexpr"),
            {"SLOTS": 8, "UNIT": _VECTOR, "BLOCK": _BLOCK},
        ),
    ),
)
