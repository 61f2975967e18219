"""The Triton functions of :mod:`whet.kernels.glu_low_rank`: two-dimensional tiles of a gated unit.

A program goes down ``steps`` tiles of its columns. The right factors of its columns stay with it, so that
what it reads beside the gated unit's own tensors is the left factors' few columns.
"""

# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: SIM108 (Triton compiles an if statement's branch alone, a conditional expression's both)

from __future__ import annotations

import triton
import triton.language as tl

from .glu import gate_probability


@triton.jit
def _place(columns, steps, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """First row and columns of this program; neighbouring programs share the rows."""
    blocks = tl.cdiv(columns, COLUMNS)
    program = tl.program_id(0)
    column = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    return (program // blocks).to(tl.int64) * (ROWS * steps), column


@triton.jit
def _right(pointer, across, down, rank, column, columns, RANK: tl.constexpr):
    """(RANK, COLUMNS) of a right factor (rank, columns), zeros beyond it."""
    r = tl.arange(0, RANK)
    mask = (r < rank)[:, None] & (column < columns)[None, :]
    at = pointer + r[:, None] * down + column.to(tl.int64)[None, :] * across
    return tl.load(at, mask=mask, other=0.0)


@triton.jit
def _left(pointer, down, rank, row, rows, RANK: tl.constexpr):
    """(ROWS, RANK) of a left factor (rows, rank), zeros beyond it."""
    r = tl.arange(0, RANK)
    mask = (row < rows)[:, None] & (r < rank)[None, :]
    return tl.load(pointer + row[:, None] * down + r[None, :], mask=mask, other=0.0)


@triton.jit
def _updated(x, left, right, CAST: tl.constexpr):
    """x + left right in float32; CAST multiplies in float32 too."""
    if CAST:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, x, input_precision="ieee")


@triton.jit
def _as_product(x):
    """x itself, in the registers where a product would leave it.

    Else the compiler would carry float32 intermediates of x over to a tensor that was updated, instead of x.
    """
    left = tl.zeros((x.shape[0], 16), tl.float16)
    right = tl.zeros((16, x.shape[1]), tl.float16)
    return tl.dot(left, right, x)


@triton.jit(do_not_specialize=["rows", "steps"])
def forward_kernel(
    gate_ptr, up_ptr, h_ptr, gate_left, gate_right, up_left, up_right, rows, columns, steps,
    gate_row, up_row, h_row, gate_left_row, gate_across, gate_down, gate_rank,
    up_left_row, up_across, up_down, up_rank,
    KIND: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    first, column = _place(columns, steps, ROWS, COLUMNS)
    if gate_left is not None:
        gate_factor = _right(gate_right, gate_across, gate_down, gate_rank, column, columns, RANK)
    if up_left is not None:
        up_factor = _right(up_right, up_across, up_down, up_rank, column, columns, RANK)
    for step in range(steps):
        row = first + step * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        gate = tl.load(gate_ptr + row[:, None] * gate_row + column[None, :], mask=mask, other=0.0)
        up = tl.load(up_ptr + row[:, None] * up_row + column[None, :], mask=mask, other=0.0)
        if gate_left is not None:
            gate_tile = _left(gate_left, gate_left_row, gate_rank, row, rows, RANK)
        if up_left is not None:
            up_tile = _left(up_left, up_left_row, up_rank, row, rows, RANK)
        gate, up = gate.to(tl.float32), up.to(tl.float32)
        if gate_left is not None:
            gate = _updated(gate, gate_tile, gate_factor, CAST)
        if up_left is not None:
            up = _updated(up, up_tile, up_factor, CAST)
        probability, _ = gate_probability(gate, KIND)
        h = (gate * probability * up).to(h_ptr.dtype.element_ty)
        tl.store(h_ptr + row[:, None] * h_row + column[None, :], h, mask=mask)


@triton.jit(do_not_specialize=["rows", "steps"])
def backward_kernel(
    dh_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr, h_ptr,
    dh_left, dh_right, gate_left, gate_right, up_left, up_right, rows, columns, steps,
    dh_row, gate_row, up_row, dgate_row, dup_row, h_row, dh_left_row, dh_across, dh_down, dh_rank,
    gate_left_row, gate_across, gate_down, gate_rank, up_left_row, up_across, up_down, up_rank,
    KIND: tl.constexpr, DH_RANK: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    first, column = _place(columns, steps, ROWS, COLUMNS)
    if dh_left is not None:
        dh_factor = _right(dh_right, dh_across, dh_down, dh_rank, column, columns, DH_RANK)
    if gate_left is not None:
        gate_factor = _right(gate_right, gate_across, gate_down, gate_rank, column, columns, RANK)
    if up_left is not None:
        up_factor = _right(up_right, up_across, up_down, up_rank, column, columns, RANK)
    for step in range(steps):
        row = first + step * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        dh = tl.load(dh_ptr + row[:, None] * dh_row + column[None, :], mask=mask, other=0.0)
        gate = tl.load(gate_ptr + row[:, None] * gate_row + column[None, :], mask=mask, other=0.0)
        up = tl.load(up_ptr + row[:, None] * up_row + column[None, :], mask=mask, other=0.0)
        if dh_left is not None:
            dh_tile = _left(dh_left, dh_left_row, dh_rank, row, rows, DH_RANK)
        if gate_left is not None:
            gate_tile = _left(gate_left, gate_left_row, gate_rank, row, rows, RANK)
        if up_left is not None:
            up_tile = _left(up_left, up_left_row, up_rank, row, rows, RANK)
        dh, gate, up = dh.to(tl.float32), gate.to(tl.float32), up.to(tl.float32)
        if dh_left is not None:
            dh = _updated(dh, dh_tile, dh_factor, CAST)
        if gate_left is None:
            gate = _as_product(gate)
        else:
            gate = _updated(gate, gate_tile, gate_factor, CAST)
        if up_left is None:
            up = _as_product(up)
        else:
            up = _updated(up, up_tile, up_factor, CAST)
        probability, density = gate_probability(gate, KIND)
        active = gate * probability
        dgate = (dh * up * (probability + gate * density)).to(dgate_ptr.dtype.element_ty)
        tl.store(dgate_ptr + row[:, None] * dgate_row + column[None, :], dgate, mask=mask)
        dup = (dh * active).to(dup_ptr.dtype.element_ty)
        tl.store(dup_ptr + row[:, None] * dup_row + column[None, :], dup, mask=mask)
        if h_ptr is not None:
            h = (active * up).to(h_ptr.dtype.element_ty)
            tl.store(h_ptr + row[:, None] * h_row + column[None, :], h, mask=mask)
