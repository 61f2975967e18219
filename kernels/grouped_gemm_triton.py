"""The Triton functions of :mod:`whet.kernels.grouped_gemm`."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def schedule_kernel(
    offsets, tile_expert, tile_row, experts, tiles, TILE: tl.constexpr, EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Program e writes the row tiles of expert e; the last one marks the tiles that nobody needs with -1."""
    expert = tl.program_id(0)
    every = tl.arange(0, EXPERTS)
    known = every < experts
    ends = tl.load(offsets + every + 1, mask=known, other=0)
    needed = tl.cdiv(ends - tl.load(offsets + every, mask=known, other=0), TILE)
    first = tl.sum(tl.where(every < expert, needed, 0))
    mine = tl.sum(tl.where(every == expert, needed, 0))
    name = expert
    if expert == experts:
        mine = tiles - first
        name = -1
    start = tl.load(offsets + expert)
    for block in range(0, mine, BLOCK):
        tile = block + tl.arange(0, BLOCK)
        tl.store(tile_expert + first + tile, tl.zeros_like(tile) + name, mask=tile < mine)
        tl.store(tile_row + first + tile, start + tile * TILE, mask=tile < mine)


@triton.jit
def _dot(a, b, sum_, CAST: tl.constexpr):
    if CAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sum_, input_precision="ieee")


@triton.jit
def rounded(x, dtype: tl.constexpr, CAST: tl.constexpr):
    """x in ``dtype``. The interpreter truncates to bf16; adding half a unit in the last place before makes it
    round to nearest even, as a GPU does.
    """
    if CAST and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def grouped_matmul_kernel(
    x, w, h, b, y, gather, offsets, tile_expert, tile_row, tiles, N, K, R, x_row, h_row, y_row, scale,
    GROUP: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr,
    TILE_R: tl.constexpr, TRANSPOSED: tl.constexpr, DESCRIBED: tl.constexpr, EVEN_K: tl.constexpr,
    GATHER: tl.constexpr, LORA: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    """y = scale (x w_e' + h b_e') for the rows of each expert e; w (X, N, K), b (X, N, R).

    TRANSPOSED: w is (X, K, N) and b (X, R, N), and neither is transposed in the products.
    DESCRIBED: x and w (all experts' rows below each other) are descriptors of their tiles. Such a tile may go
    on into the next expert; nothing of that is stored.
    GROUP row tiles take a column tile one after the other: what they read of w stays in the cache meanwhile.
    """
    columns = tl.cdiv(N, TILE_N)
    program = tl.program_id(0) % (GROUP * columns)
    first = tl.program_id(0) // (GROUP * columns) * GROUP
    height = tl.minimum(GROUP, tiles - first)
    tile = first + program % height
    expert = tl.load(tile_expert + tile)
    if expert < 0:
        return
    first_row = tl.load(tile_row + tile)
    rows = first_row + tl.arange(0, TILE_M)
    end = tl.load(offsets + expert + 1)
    # Rows behind the group's end repeat its last one: no mask in the loop, and nothing of them is stored.
    row = tl.minimum(rows, end - 1).to(tl.int64)
    first_column = (program // height) * TILE_N
    n = first_column + tl.arange(0, TILE_N)
    inside = (n < N)[None, :]
    k = tl.arange(0, TILE_K)
    if not DESCRIBED:
        source = row
        if GATHER:
            source = tl.load(gather + row).to(tl.int64)
        x += source[:, None] * x_row + k[None, :]
        w += expert.to(tl.int64) * N * K
        if TRANSPOSED:
            w += k[:, None] * N + n[None, :]
        else:
            w += n[None, :] * K + k[:, None]
    sum_ = tl.zeros((TILE_M, TILE_N), tl.float32)
    for start in range(0, K, TILE_K):
        if DESCRIBED:
            x_tile = x.load([first_row, start])
            if TRANSPOSED:
                w_tile = w.load([expert * K + start, first_column])
            else:
                w_tile = w.load([expert * N + first_column, start]).T
        elif EVEN_K:
            x_tile = tl.load(x)
            w_tile = tl.load(w, mask=inside, other=0.0)
        else:
            left = k < K - start
            x_tile = tl.load(x, mask=left[None, :], other=0.0)
            w_tile = tl.load(w, mask=left[:, None] & inside, other=0.0)
        sum_ = _dot(x_tile, w_tile, sum_, CAST)
        if not DESCRIBED:
            x += TILE_K
            w += TILE_K * N if TRANSPOSED else TILE_K
    if LORA:
        r = tl.arange(0, TILE_R)
        h_tile = tl.load(h + row[:, None] * h_row + r[None, :], mask=(r < R)[None, :], other=0.0)
        b_at = b + expert.to(tl.int64) * N * R
        if TRANSPOSED:
            b_at += r[:, None] * N + n[None, :]
        else:
            b_at += n[None, :] * R + r[:, None]
        b_tile = tl.load(b_at, mask=(r < R)[:, None] & inside, other=0.0)
        sum_ = _dot(h_tile, b_tile, sum_, CAST)
    y_at = y + rows.to(tl.int64)[:, None] * y_row + n[None, :]
    tl.store(y_at, rounded(sum_ * scale, y.dtype.element_ty, CAST), mask=(rows < end)[:, None] & inside)


@triton.jit
def grouped_outer_kernel(
    a, b, out, gather, offsets, M, N, a_row, b_row,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_S: tl.constexpr, GATHER: tl.constexpr,
    CAST: tl.constexpr,
):  # fmt: skip
    """out_e = a_e' b_e over the rows of expert e, (X, M, N); zeros where it has none."""
    across = tl.cdiv(N, TILE_N)
    each = tl.cdiv(M, TILE_M) * across
    expert = tl.program_id(0) // each
    tile = tl.program_id(0) % each
    m = (tile // across) * TILE_M + tl.arange(0, TILE_M)
    n = (tile % across) * TILE_N + tl.arange(0, TILE_N)
    end = tl.load(offsets + expert + 1)
    sum_ = tl.zeros((TILE_M, TILE_N), tl.float32)
    for start in range(tl.load(offsets + expert), end, TILE_S):
        rows = start + tl.arange(0, TILE_S)
        inside = (rows < end)[:, None]
        source = rows
        if GATHER:
            source = tl.load(gather + rows, mask=rows < end, other=0)
        a_at = a + rows.to(tl.int64)[:, None] * a_row + m[None, :]
        b_at = b + source.to(tl.int64)[:, None] * b_row + n[None, :]
        a_tile = tl.load(a_at, mask=inside & (m < M)[None, :], other=0.0)
        b_tile = tl.load(b_at, mask=inside & (n < N)[None, :], other=0.0)
        sum_ = _dot(tl.trans(a_tile), b_tile, sum_, CAST)
    out_at = out + expert.to(tl.int64) * M * N + m[:, None] * N + n[None, :]
    tl.store(out_at, rounded(sum_, out.dtype.element_ty, CAST), mask=(m < M)[:, None] & (n < N)[None, :])
