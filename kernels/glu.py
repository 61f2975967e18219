"""Gated linear units, the middle of a decoder's MLP (Shazeer 2020, arXiv:2002.05202).

    h = a(gate) up

with a(x) = x P(x), P the logistic sigmoid for ``swiglu`` and the normal distribution function for ``geglu``,
exact or by its tanh approximation (``geglu_tanh``). Backward, with slope a'(x) = P(x) + x P'(x):

    dup = dh a(gate)        dgate = dh up a'(gate)

Backward writes over gate and up, which nothing needs afterwards, and can give h again in the same pass, so a
layer keeps gate and up only. Each element is read once and written once; memory bounds the time. For an FP8
product the forward pass also writes h quantised, from registers that hold whole rows.

Legend: T tokens, F MLP width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from .backend import uses_triton
from .fp8 import converts_natively, quantize_rows
from .fp8_triton import quantize_tile
from .gelu import gelu_probability
from .rows import accumulation_type, addressable, output, row_tile
from .spec import Case, Compilation, Inputs, KernelSpec, bytes_of

KINDS = ("swiglu", "geglu", "geglu_tanh")
_BLOCK = 1024  # columns of a program of 128 threads: one 16-byte access a thread and tensor in 16-bit types


@triton.jit
def gate_probability(x, KIND: tl.constexpr):
    """(P(x), P'(x)) for float32 x; finite for every finite x."""
    if KIND == "swiglu":
        probability = 1.0 / (1.0 + tl.exp(-x))
        density = probability * (1.0 - probability)
    else:
        probability, density = gelu_probability(x, TANH=KIND == "geglu_tanh")
    return probability, density


@triton.jit
def _segment(columns, BLOCK: tl.constexpr):
    """Row, columns and mask of this program; one axis, because the others stop at 65,535 programs."""
    blocks = tl.cdiv(columns, BLOCK)
    program = tl.program_id(0)
    column = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    return (program // blocks).to(tl.int64), column, column < columns


@triton.jit
def _forward_kernel(
    gate_ptr, up_ptr, h_ptr, columns, gate_row, up_row, h_row, KIND: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row, column, mask = _segment(columns, BLOCK)
    gate = tl.load(gate_ptr + row * gate_row + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_row + column, mask=mask, other=0.0).to(tl.float32)
    probability, _ = gate_probability(gate, KIND)
    tl.store(h_ptr + row * h_row + column, (gate * probability * up).to(h_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _quantized_kernel(
    gate_ptr, up_ptr, h_ptr, bits_ptr, scale_ptr, rows, columns, gate_row, up_row, h_row,
    KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """ROWS whole rows; beyond their end h is zero, as the quantisation needs it."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    there = row < rows
    mask = there[:, None] & (column < columns)
    start = row.to(tl.int64)[:, None]
    gate = tl.load(gate_ptr + start * gate_row + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + start * up_row + column, mask=mask, other=0.0).to(tl.float32)
    probability, _ = gate_probability(gate, KIND)
    h = (gate * probability * up).to(h_ptr.dtype.element_ty)
    tl.store(h_ptr + start * h_row + column, h, mask=mask)
    bits, scale = quantize_tile(h.to(tl.float32), NATIVE)
    tl.store(bits_ptr + start * columns + column, bits, mask=mask)
    tl.store(scale_ptr + row, scale, mask=there)


@triton.jit
def _backward_kernel(
    dh_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr, h_ptr,
    columns, dh_row, gate_row, up_row, dgate_row, dup_row, h_row,
    KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column, mask = _segment(columns, BLOCK)
    dh = tl.load(dh_ptr + row * dh_row + column, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_row + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_row + column, mask=mask, other=0.0).to(tl.float32)
    probability, density = gate_probability(gate, KIND)
    active = gate * probability
    dgate = dh * up * (probability + gate * density)
    tl.store(dgate_ptr + row * dgate_row + column, dgate.to(dgate_ptr.dtype.element_ty), mask=mask)
    tl.store(dup_ptr + row * dup_row + column, (dh * active).to(dup_ptr.dtype.element_ty), mask=mask)
    if h_ptr is not None:
        tl.store(h_ptr + row * h_row + column, (active * up).to(h_ptr.dtype.element_ty), mask=mask)


def reference(gate: torch.Tensor, up: torch.Tensor, kind: str) -> torch.Tensor:
    """What :func:`glu` computes, in plain torch: float32 inside for 16-bit types, float64 for float64."""
    check_halves(gate, up, kind)
    wide = accumulation_type(gate.dtype)
    return (_activation(gate.to(wide), kind) * up.to(wide)).to(gate.dtype)


def glu_forward(
    gate_TF: torch.Tensor, up_TF: torch.Tensor, kind: str, *, out_TF: torch.Tensor | None = None
) -> torch.Tensor:
    """h_TF = a(gate) up, rounded once; rows of all three may have any stride, as two views of one buffer do.

    Args:
        gate_TF: what the activation takes.
        up_TF: what it multiplies; same shape and type.
        kind: one of :data:`KINDS`.
        out_TF: where h goes; may be ``gate_TF`` or ``up_TF``.

    Raises:
        ValueError: for an unknown ``kind`` or shapes that differ.
    """
    check_halves(gate_TF, up_TF, kind)
    out = output(out_TF, gate_TF)
    if not gate_TF.numel():
        return out
    if not uses_triton(gate_TF):
        return out.copy_(reference(gate_TF, up_TF, kind))
    gate, up, (rows, columns) = addressable(gate_TF), addressable(up_TF), gate_TF.shape
    _forward_kernel[(rows * triton.cdiv(columns, _BLOCK),)](
        gate, up, out, columns, gate.stride(0), up.stride(0), out.stride(0), KIND=kind, BLOCK=_BLOCK
    )
    return out


def glu_quantized_forward(
    gate_TF: torch.Tensor, up_TF: torch.Tensor, kind: str, *, out_TF: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`glu_forward` and, in the same pass, ``quantize_rows`` of its rounded result.

    Returns:
        h_TF; h8_TF float8_e4m3fn, contiguous; scale_T float32 with h ≈ h8 · scale.

    Raises:
        ValueError: as there, or if rows are wider than a program holds (:data:`.rows.WIDEST`).
    """
    check_halves(gate_TF, up_TF, kind)
    if not uses_triton(gate_TF) or not gate_TF.numel():
        h = glu_forward(gate_TF, up_TF, kind, out_TF=out_TF)
        return h, *quantize_rows(h)
    h, (rows, columns) = output(out_TF, gate_TF), gate_TF.shape
    h8 = torch.empty((rows, columns), dtype=torch.float8_e4m3fn, device=h.device)
    scale = torch.empty(rows, dtype=torch.float32, device=h.device)
    gate, up, tile = addressable(gate_TF), addressable(up_TF), row_tile(columns)
    _quantized_kernel[(triton.cdiv(rows, tile.rows),)](
        gate, up, h, h8.view(torch.uint8), scale, rows, columns, gate.stride(0), up.stride(0), h.stride(0),
        KIND=kind, ROWS=tile.rows, COLUMNS=tile.columns, NATIVE=converts_natively(h.device),
        num_warps=tile.warps,
    )  # fmt: skip
    return h, h8, scale


def glu_backward(
    dh_TF: torch.Tensor,
    gate_TF: torch.Tensor,
    up_TF: torch.Tensor,
    kind: str,
    *,
    h_TF: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dgate_TF, dup_TF), written over ``gate_TF`` and ``up_TF`` unless ``out`` is given.

    Args:
        dh_TF: gradient of the forward result.
        gate_TF: the forward input; overwritten by its gradient.
        up_TF: likewise.
        kind: one of :data:`KINDS`.
        h_TF: if given, the forward result is written there in the same pass; may be ``dh_TF``.
        out: where the gradients of gate and up go, if not over these.

    Raises:
        ValueError: for an unknown ``kind`` or shapes that differ.
    """
    check_halves(gate_TF, up_TF, kind)
    dgate, dup = (output(tensor, gate_TF) for tensor in (out or (gate_TF, up_TF)))
    h = None if h_TF is None else output(h_TF, gate_TF)
    if not gate_TF.numel():
        return dgate, dup
    if not uses_triton(gate_TF):
        return reference_backward(dh_TF, gate_TF, up_TF, kind, h, (dgate, dup))
    dh, gate, up = addressable(dh_TF), addressable(gate_TF), addressable(up_TF)
    rows, columns = gate.shape
    _backward_kernel[(rows * triton.cdiv(columns, _BLOCK),)](
        dh, gate, up, dgate, dup, h, columns,
        dh.stride(0), gate.stride(0), up.stride(0), dgate.stride(0), dup.stride(0),
        0 if h is None else h.stride(0), KIND=kind, BLOCK=_BLOCK,
    )  # fmt: skip
    return dgate, dup


def glu(gate: torch.Tensor, up: torch.Tensor, kind: str) -> torch.Tensor:
    """a(gate) up of two tensors (..., F), differentiable in both; keeps its inputs.

    Raises:
        ValueError: for an unknown ``kind`` or shapes that differ.
    """
    width = gate.shape[-1]
    h: torch.Tensor = _Glu.apply(gate.reshape(-1, width), up.reshape(-1, width), kind)
    return h.view(gate.shape)


class _Glu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TF: torch.Tensor, up_TF: torch.Tensor, kind: str) -> torch.Tensor:
        ctx.save_for_backward(gate_TF, up_TF)
        ctx.kind = kind
        return glu_forward(gate_TF, up_TF, kind)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dh_TF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        gate_TF, up_TF = ctx.saved_tensors
        fresh = torch.empty((2, *gate_TF.shape), dtype=gate_TF.dtype, device=gate_TF.device)
        dgate, dup = glu_backward(dh_TF, gate_TF, up_TF, ctx.kind, out=(fresh[0], fresh[1]))
        return dgate, dup, None


def _activation(gate: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "swiglu":
        return F.silu(gate)
    return F.gelu(gate, approximate="tanh" if kind == "geglu_tanh" else "none")


def reference_backward(
    dh: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    kind: str,
    h: torch.Tensor | None,
    out: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = accumulation_type(gate.dtype)
    dh, gate, up = dh.to(wide), gate.to(wide), up.to(wide)
    active, dactive = _activation(gate, kind), dh * up
    if kind == "swiglu":
        dgate = torch.ops.aten.silu_backward(dactive, gate)
    else:
        approximate = "tanh" if kind == "geglu_tanh" else "none"
        dgate = torch.ops.aten.gelu_backward(dactive, gate, approximate=approximate)
    dup, product = dh * active, active * up  # before anything is written: in float32 these may share memory
    if h is not None:
        h.copy_(product)
    return out[0].copy_(dgate), out[1].copy_(dup)


def check_halves(gate: torch.Tensor, up: torch.Tensor, kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown gated linear unit {kind!r}; known are {', '.join(KINDS)}")
    if gate.shape != up.shape:
        raise ValueError(f"gate has shape {tuple(gate.shape)}, up {tuple(up.shape)}; they have to agree")


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Gate and up as the two halves of one buffer, as one projection writes them."""
    generator = torch.Generator(device).manual_seed(seed)
    tokens, width = case.sizes["tokens"], case.sizes["width"]
    both = torch.randn(tokens, 2 * width, generator=generator, device=device).mul_(2).to(dtype)
    return {"gate": both[:, :width], "up": both[:, width:], "kind": case.sizes["kind"]}


def _traffic(inputs: Inputs) -> int:
    return 3 * bytes_of(inputs["gate"])


_CASES = (
    *(Case(kind, {"tokens": 5, "width": 96, "kind": kind}) for kind in KINDS),
    Case("odd", {"tokens": 3, "width": 1031, "kind": "swiglu"}),
    Case("odd geglu", {"tokens": 7, "width": 33, "kind": "geglu_tanh"}),
    Case("empty", {"tokens": 0, "width": 96, "kind": "swiglu"}),
)
_TIMED = (
    Case("8b", {"tokens": 8192, "width": 14336, "kind": "swiglu"}),
    Case("0.6b", {"tokens": 8192, "width": 3072, "kind": "swiglu"}),
    Case("8b geglu_tanh", {"tokens": 8192, "width": 14336, "kind": "geglu_tanh"}),
    Case("8b geglu", {"tokens": 8192, "width": 14336, "kind": "geglu"}),
)
_FORWARD = {
    **dict.fromkeys(("gate_ptr", "up_ptr", "h_ptr"), "*T"),
    **dict.fromkeys(("columns", "gate_row", "up_row", "h_row"), "i32"),
    "KIND": "constexpr",
    "BLOCK": "constexpr",
}
_BACKWARD = {
    **dict.fromkeys(("dh_ptr", "gate_ptr", "up_ptr", "dgate_ptr", "dup_ptr", "h_ptr"), "*T"),
    **dict.fromkeys(("columns", "dh_row", "gate_row", "up_row", "dgate_row", "dup_row", "h_row"), "i32"),
    "KIND": "constexpr",
    "BLOCK": "constexpr",
}
_QUANTIZED = {
    **dict.fromkeys(("gate_ptr", "up_ptr", "h_ptr"), "*T"),
    **{"bits_ptr": "*u8", "scale_ptr": "*fp32"},
    **dict.fromkeys(("rows", "columns", "gate_row", "up_row", "h_row"), "i32"),
    **dict.fromkeys(("KIND", "ROWS", "COLUMNS", "NATIVE"), "constexpr"),
}


def _quantization(width: int, kind: str, native: bool) -> Compilation:
    tile = row_tile(width)
    constants = {"KIND": kind, "ROWS": tile.rows, "COLUMNS": tile.columns, "NATIVE": native}
    least = 89 if native else 75
    return Compilation(_quantized_kernel, _QUANTIZED, constants, tile.warps, least_capability=least)


SPEC = KernelSpec(
    name="glu",
    operation=glu,
    reference=reference,
    inputs=_inputs,
    cases=_CASES,
    timed=_TIMED,
    tolerance={torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 5e-4},
    traffic=_traffic,
    backward_traffic=lambda inputs: 5 * bytes_of(inputs["gate"]),
    differentiable=("gate", "up"),
    compilations=(
        *(
            Compilation(function, signature, {"KIND": kind, "BLOCK": _BLOCK})
            for kind in KINDS
            for function, signature in ((_forward_kernel, _FORWARD), (_backward_kernel, _BACKWARD))
        ),
        _quantization(14336, "swiglu", True),
        _quantization(14336, "geglu", True),
        _quantization(3072, "geglu_tanh", False),
    ),
)
