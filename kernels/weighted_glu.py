"""Gated linear units of experts: the routing weight of each row is multiplied in on the way.

    h = c a(gate) up          c one number a row

Experts' last layer is linear, so their rows may be weighted before it (:mod:`.moe`). Backward, with a' as in
:mod:`.glu`:

    dgate = dh c up a'(gate)        dup = dh c a(gate)        dc = sum over the row of dh a(gate) up

Where all may be written over, gradients of gate and up go over these and h goes over dh, so that backward
needs no memory of its own; a program goes through a whole row, so that dc is summed in one fixed order.

Legend: S rows, one for each token and expert it goes to; F expert width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from .backend import uses_triton
from .glu import KINDS, check_halves, gate_probability, reference_backward
from .glu import reference as plain_glu
from .rows import accumulation_type, addressable, output
from .spec import Case, Compilation, Inputs, KernelSpec, bytes_of

_BLOCK = 1024  # columns at a time, at most
_ELEMENTS = 256  # a warp: one 16-byte access a thread in 16-bit types


@triton.jit
def _forward_kernel(
    gate_ptr, up_ptr, share_ptr, h_ptr, columns, gate_row, up_row, h_row,
    KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(columns, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    gate = tl.load(gate_ptr + row * gate_row + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_row + column, mask=mask, other=0.0).to(tl.float32)
    share = tl.load(share_ptr + row).to(tl.float32)
    probability, _ = gate_probability(gate, KIND)
    h = share * gate * probability * up
    tl.store(h_ptr + row * h_row + column, h.to(h_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    dh_ptr, gate_ptr, up_ptr, share_ptr, dgate_ptr, dup_ptr, h_ptr, dshare_ptr, columns,
    dh_row, gate_row, up_row, dgate_row, dup_row, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A whole row; h is left out or goes over dh."""
    row = tl.program_id(0).to(tl.int64)
    share = tl.load(share_ptr + row).to(tl.float32)
    sum_ = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        dh = tl.load(dh_ptr + row * dh_row + column, mask=mask, other=0.0).to(tl.float32)
        gate = tl.load(gate_ptr + row * gate_row + column, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(up_ptr + row * up_row + column, mask=mask, other=0.0).to(tl.float32)
        probability, density = gate_probability(gate, KIND)
        active = gate * probability
        sum_ += dh * active * up
        dh_shared = dh * share
        dgate = (dh_shared * up * (probability + gate * density)).to(dgate_ptr.dtype.element_ty)
        tl.store(dgate_ptr + row * dgate_row + column, dgate, mask=mask)
        dup = (dh_shared * active).to(dup_ptr.dtype.element_ty)
        tl.store(dup_ptr + row * dup_row + column, dup, mask=mask)
        if h_ptr is not None:
            h = (share * active * up).to(h_ptr.dtype.element_ty)
            tl.store(h_ptr + row * dh_row + column, h, mask=mask)
    tl.store(dshare_ptr + row, tl.sum(sum_))


def reference(gate_SF: torch.Tensor, up_SF: torch.Tensor, share_S: torch.Tensor, kind: str) -> torch.Tensor:
    """What :func:`weighted_glu` computes, in plain torch: float32 inside for 16-bit types."""
    wide = accumulation_type(gate_SF.dtype)
    h_SF = plain_glu(gate_SF.to(wide), up_SF.to(wide), kind)
    return (share_S.to(wide)[:, None] * h_SF).to(gate_SF.dtype)


def weighted_glu_forward(
    gate_SF: torch.Tensor,
    up_SF: torch.Tensor,
    share_S: torch.Tensor,
    kind: str,
    *,
    out_SF: torch.Tensor | None = None,
) -> torch.Tensor:
    """h_SF = share a(gate) up, rounded once.

    Args:
        gate_SF: what the activation takes; rows of any stride, as all here.
        up_SF: what it multiplies; same shape and type.
        share_S: of each row, any float type.
        kind: one of :data:`.glu.KINDS`.
        out_SF: where h goes.

    Raises:
        ValueError: for an unknown ``kind`` or shapes that differ.
    """
    _check(gate_SF, up_SF, share_S, kind)
    out = output(out_SF, gate_SF)
    if not gate_SF.numel():
        return out
    if not uses_triton(gate_SF):
        return out.copy_(reference(gate_SF, up_SF, share_S, kind))
    gate, up, (rows, columns) = addressable(gate_SF), addressable(up_SF), gate_SF.shape
    _forward_kernel[(rows * triton.cdiv(columns, _BLOCK),)](
        gate, up, share_S.contiguous(), out, columns, gate.stride(0), up.stride(0), out.stride(0),
        KIND=kind, BLOCK=_BLOCK,
    )  # fmt: skip
    return out


def _block(columns: int) -> int:
    """Of a program that goes through a row: a power of two that divides it, where that is worth a warp."""
    block = math.gcd(columns, _BLOCK)
    return block if block >= _ELEMENTS else _BLOCK


def weighted_glu_backward(
    dh_SF: torch.Tensor,
    gate_SF: torch.Tensor,
    up_SF: torch.Tensor,
    share_S: torch.Tensor,
    kind: str,
    gradients: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """dshare_S in fp32 (float64 for float64); dgate, dup and h are written IN PLACE over gate, up and dh,
    unless the gradients have a place of their own: then h is left out.

    Args:
        dh_SF: gradient of the forward result, overwritten by that result. Unit last stride, as gate and up.
        gate_SF: the forward input, overwritten by its gradient.
        up_SF: likewise.
        share_S: as forward.
        kind: as forward.
        gradients: where those of gate and up go instead.

    Raises:
        ValueError: as forward, or where a row's elements are not next to one another.
    """
    _check(gate_SF, up_SF, share_S, kind)
    dh, gate, up = (output(tensor, gate_SF) for tensor in (dh_SF, gate_SF, up_SF))
    dgate, dup = (gate, up) if gradients is None else (output(tensor, gate_SF) for tensor in gradients)
    rows, columns = gate.shape
    wide = accumulation_type(gate.dtype)
    if not gate.numel():
        return torch.zeros(rows, dtype=wide, device=gate.device)
    if not uses_triton(gate):
        h, share_S1 = plain_glu(gate.to(wide), up.to(wide), kind), share_S.to(wide)[:, None]
        dshare_S = (dh.to(wide) * h).sum(1)
        reference_backward(dh.to(wide) * share_S1, gate, up, kind, None, (dgate, dup))
        if gradients is None:
            dh.copy_(h * share_S1)
        return dshare_S
    dshare_S = torch.empty(rows, dtype=torch.float32, device=gate.device)
    tensors = (dh, gate, up, share_S.contiguous(), dgate, dup, dh if gradients is None else None, dshare_S)
    strides = (tensor.stride(0) for tensor in (dh, gate, up, dgate, dup))
    block = _block(columns)
    _backward_kernel[(rows,)](
        *tensors, columns, *strides, KIND=kind, BLOCK=block, num_warps=block // _ELEMENTS
    )
    return dshare_S


def _check(gate: torch.Tensor, up: torch.Tensor, share: torch.Tensor, kind: str) -> None:
    check_halves(gate, up, kind)
    if share.shape != gate.shape[:1]:
        raise ValueError(f"{tuple(share.shape)} shares for {len(gate)} rows; needed is one a row")


class _WeightedGlu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gate: torch.Tensor, up: torch.Tensor, share: torch.Tensor, kind: str
    ) -> torch.Tensor:
        ctx.save_for_backward(gate, up, share)
        ctx.kind = kind
        return weighted_glu_forward(gate, up, share, kind)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dh: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dh, gate, up = (addressable(each) for each in (dh, *ctx.saved_tensors[:2]))
        share, gradients = ctx.saved_tensors[2], (torch.empty_like(gate), torch.empty_like(up))
        dshare = weighted_glu_backward(dh, gate, up, share, ctx.kind, gradients)
        return *gradients, dshare.to(share.dtype), None


def weighted_glu(
    gate_SF: torch.Tensor, up_SF: torch.Tensor, share_S: torch.Tensor, kind: str
) -> torch.Tensor:
    """share a(gate) up, differentiable in all three; keeps its inputs.

    Args:
        gate_SF: (S, F).
        up_SF: (S, F).
        share_S: (S,), any float type.
        kind: one of :data:`.glu.KINDS`.

    Raises:
        ValueError: for an unknown ``kind`` or shapes that differ.
    """
    result: torch.Tensor = _WeightedGlu.apply(gate_SF, up_SF, share_S, kind)
    return result


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)
    rows, width = case.sizes["S"], case.sizes["F"]
    both = torch.randn(rows, 2 * width, generator=generator, device=device).mul_(2).to(dtype)
    share = torch.rand(rows, generator=generator, device=device).to(dtype)
    return {
        "gate_SF": both[:, :width],
        "up_SF": both[:, width:],
        "share_S": share,
        "kind": case.sizes["kind"],
    }


_FORWARD = {
    **dict.fromkeys(("gate_ptr", "up_ptr", "h_ptr"), "*T"),
    "share_ptr": "*fp32",
    **dict.fromkeys(("columns", "gate_row", "up_row", "h_row"), "i32"),
    **dict.fromkeys(("KIND", "BLOCK"), "constexpr"),
}
_BACKWARD = {
    **dict.fromkeys(("dh_ptr", "gate_ptr", "up_ptr", "dgate_ptr", "dup_ptr", "h_ptr"), "*T"),
    **dict.fromkeys(("share_ptr", "dshare_ptr"), "*fp32"),
    **dict.fromkeys(("columns", "dh_row", "gate_row", "up_row", "dgate_row", "dup_row"), "i32"),
    **dict.fromkeys(("KIND", "BLOCK"), "constexpr"),
}

SPEC = KernelSpec(
    name="weighted_glu",
    operation=weighted_glu,
    reference=reference,
    inputs=_inputs,
    cases=(
        *(Case(kind, {"S": 5, "F": 96, "kind": kind}) for kind in KINDS),
        Case("odd", {"S": 3, "F": 1031, "kind": "swiglu"}),
        Case("narrow", {"S": 4, "F": 768, "kind": "swiglu"}),
        Case("empty", {"S": 0, "F": 96, "kind": "swiglu"}),
    ),
    timed=(
        Case("qwen3-30b", {"S": 65536, "F": 768, "kind": "swiglu"}),
        Case("mixtral", {"S": 16384, "F": 14336, "kind": "swiglu"}),
    ),
    tolerance={torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 5e-4},
    traffic=lambda inputs: 3 * bytes_of(inputs["gate_SF"]),
    backward_traffic=lambda inputs: 5 * bytes_of(inputs["gate_SF"]),
    differentiable=("gate_SF", "up_SF", "share_S"),
    compilations=tuple(
        Compilation(function, signature, {"KIND": kind, "BLOCK": block, **more}, num_warps=block // _ELEMENTS)
        for kind in ("swiglu", "geglu_tanh")
        for function, signature, block, more in (
            (_forward_kernel, _FORWARD, _BLOCK, {}),
            (_backward_kernel, _BACKWARD, _BLOCK, {}),
            (_backward_kernel, {**_BACKWARD, "h_ptr": "constexpr"}, _block(768), {"h_ptr": None}),
        )
    ),
)
