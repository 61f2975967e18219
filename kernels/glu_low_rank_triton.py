"""The Triton functions of :mod:`whet.kernels.glu_low_rank`: two-dimensional tiles of a gated unit.

A program goes down ``steps`` tiles of its columns, the next ones on their way meanwhile. The right factors of
its columns stay with it, so that what it reads beside the gated unit's own tensors is the left factors' few
columns.

A product leaves pairs of neighbouring columns in a thread's registers, eight columns apart; memory is read
best in eights. To exchange them through shared memory took a dozen barriers a tile, where all its warps
waited. Instead the right factors' columns change places, so that a thread's pairs are the eight neighbours
that it reads and writes. For that a tile lies in lines of :data:`LINE` columns: one access of a warp covers
eight of them, one below another, as a product does.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from .glu import gate_probability

LINE = tl.constexpr(32)  # columns: four threads' eights


@triton.jit
def place(columns, steps, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """First row and first column of this program; neighbouring programs share the rows."""
    blocks = tl.cdiv(columns, COLUMNS)
    program = tl.program_id(0)
    return (program // blocks).to(tl.int64) * (ROWS * steps), (program % blocks) * COLUMNS


@triton.jit
def lines(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(lines, 1) rows and (lines, LINE) columns of a tile: eight rows of a warp's columns, then the next
    warp's, then the next eight rows."""
    BESIDE: tl.constexpr = COLUMNS // LINE
    line = tl.arange(0, ROWS * BESIDE)
    row = line // (8 * BESIDE) * 8 + line % 8
    column = line // 8 % BESIDE * LINE
    return row[:, None], column[:, None] + tl.arange(0, LINE)[None, :]


@triton.jit
def right_factor(pointer, across, down, rank, first, columns, RANK: tl.constexpr, COLUMNS: tl.constexpr):
    """(RANK, COLUMNS) of a right factor (rank, columns) in a product's order, zeros beyond it."""
    BESIDE: tl.constexpr = COLUMNS // LINE
    r = tl.arange(0, RANK)
    c = tl.arange(0, COLUMNS)
    # From the fastest: two of a pair, four threads, BESIDE warps, four pairs a thread.
    column = first + c // 8 % BESIDE * LINE + c // 2 % 4 * 8 + c // (8 * BESIDE) * 2 + c % 2
    mask = (r < rank)[:, None] & (column < columns)[None, :]
    at = pointer + r[:, None] * down + column.to(tl.int64)[None, :] * across
    return tl.load(at, mask=mask, other=0.0)


@triton.jit
def left_factor(pointer, down, rank, first, rows, RANK: tl.constexpr, ROWS: tl.constexpr):
    """(ROWS, RANK) of a left factor (rows, rank), zeros beyond it."""
    row = first + tl.arange(0, ROWS)
    r = tl.arange(0, RANK)
    mask = (row < rows)[:, None] & (r < rank)[None, :]
    return tl.load(pointer + row[:, None] * down + r[None, :], mask=mask, other=0.0)


@triton.jit
def updated(x, left, right, CAST: tl.constexpr):
    """x + left right for a float32 tile in lines; CAST multiplies in float32 too."""
    EIGHTS: tl.constexpr = left.shape[0] // 8
    BESIDE: tl.constexpr = right.shape[1] // LINE
    if CAST:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    x = tl.permute(tl.reshape(x, (EIGHTS, BESIDE, 8, 4, 4, 2)), (0, 2, 4, 1, 3, 5))
    x = tl.dot(left, right, tl.reshape(x, (8 * EIGHTS, BESIDE * LINE)), input_precision="ieee")
    x = tl.permute(tl.reshape(x, (EIGHTS, 8, 4, BESIDE, 4, 2)), (0, 3, 1, 4, 2, 5))
    return tl.reshape(x, (EIGHTS * BESIDE * 8, LINE))


@triton.jit(do_not_specialize=["rows", "steps"])
def forward_kernel(
    gate_ptr, up_ptr, h_ptr, gate_left, gate_right, up_left, up_right, rows, columns, steps,
    gate_row, up_row, h_row, gate_left_row, gate_across, gate_down, gate_rank,
    up_left_row, up_across, up_down, up_rank,
    KIND: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CAST: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    first, start = place(columns, steps, ROWS, COLUMNS)
    below, beside = lines(ROWS, COLUMNS)
    column = start + beside
    if gate_left is not None:
        gate_factor = right_factor(
            gate_right, gate_across, gate_down, gate_rank, start, columns, RANK, COLUMNS
        )
    if up_left is not None:
        up_factor = right_factor(up_right, up_across, up_down, up_rank, start, columns, RANK, COLUMNS)
    for step in tl.range(0, steps, num_stages=STAGES):
        above = first + step * ROWS
        row = above + below
        mask = (row < rows) & (column < columns)
        gate = tl.load(gate_ptr + row * gate_row + column, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(up_ptr + row * up_row + column, mask=mask, other=0.0).to(tl.float32)
        if gate_left is not None:
            tile = left_factor(gate_left, gate_left_row, gate_rank, above, rows, RANK, ROWS)
            gate = updated(gate, tile, gate_factor, CAST)
        if up_left is not None:
            tile = left_factor(up_left, up_left_row, up_rank, above, rows, RANK, ROWS)
            up = updated(up, tile, up_factor, CAST)
        probability, _ = gate_probability(gate, KIND)
        h = (gate * probability * up).to(h_ptr.dtype.element_ty)
        tl.store(h_ptr + row * h_row + column, h, mask=mask)


@triton.jit(do_not_specialize=["rows", "steps"])
def backward_kernel(
    dh_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr, h_ptr,
    dh_left, dh_right, gate_left, gate_right, up_left, up_right, rows, columns, steps,
    dh_row, gate_row, up_row, dgate_row, dup_row, h_row, dh_left_row, dh_across, dh_down, dh_rank,
    gate_left_row, gate_across, gate_down, gate_rank, up_left_row, up_across, up_down, up_rank,
    KIND: tl.constexpr, DH_RANK: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, CAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    first, start = place(columns, steps, ROWS, COLUMNS)
    below, beside = lines(ROWS, COLUMNS)
    column = start + beside
    if dh_left is not None:
        dh_factor = right_factor(dh_right, dh_across, dh_down, dh_rank, start, columns, DH_RANK, COLUMNS)
    if gate_left is not None:
        gate_factor = right_factor(
            gate_right, gate_across, gate_down, gate_rank, start, columns, RANK, COLUMNS
        )
    if up_left is not None:
        up_factor = right_factor(up_right, up_across, up_down, up_rank, start, columns, RANK, COLUMNS)
    for step in tl.range(0, steps, num_stages=STAGES):
        above = first + step * ROWS
        row = above + below
        mask = (row < rows) & (column < columns)
        dh = tl.load(dh_ptr + row * dh_row + column, mask=mask, other=0.0).to(tl.float32)
        gate = tl.load(gate_ptr + row * gate_row + column, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(up_ptr + row * up_row + column, mask=mask, other=0.0).to(tl.float32)
        if dh_left is not None:
            tile = left_factor(dh_left, dh_left_row, dh_rank, above, rows, DH_RANK, ROWS)
            dh = updated(dh, tile, dh_factor, CAST)
        if gate_left is not None:
            tile = left_factor(gate_left, gate_left_row, gate_rank, above, rows, RANK, ROWS)
            gate = updated(gate, tile, gate_factor, CAST)
        if up_left is not None:
            tile = left_factor(up_left, up_left_row, up_rank, above, rows, RANK, ROWS)
            up = updated(up, tile, up_factor, CAST)
        probability, density = gate_probability(gate, KIND)
        active = gate * probability
        dgate = (dh * up * (probability + gate * density)).to(dgate_ptr.dtype.element_ty)
        tl.store(dgate_ptr + row * dgate_row + column, dgate, mask=mask)
        dup = (dh * active).to(dup_ptr.dtype.element_ty)
        tl.store(dup_ptr + row * dup_row + column, dup, mask=mask)
        if h_ptr is not None:
            h = (active * up).to(h_ptr.dtype.element_ty)
            tl.store(h_ptr + row * h_row + column, h, mask=mask)
