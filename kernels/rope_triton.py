"""The Triton functions of :mod:`.rope`.

A head is held as three tiles: the first and the second half of its rotary width, which exchange values, and
the rest, which passes through. A thread reads the pairs that it writes, so input and output may share memory.
Where there is no rest, its tile is one column behind a mask that is false, and the compiler drops it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .spec import Compilation

_BLOCK_HEADS = 8  # heads that a program holds at a time


@triton.jit
def _load_heads(
    pointers,
    inside,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    """First half, second half and rest of the heads that start at ``pointers`` (heads, 1), in float32."""
    column = tl.arange(0, BLOCK_HALF)[None, :]
    passing = tl.arange(0, BLOCK_REST)[None, :]
    first = tl.load(pointers + column, mask=(column < HALF) & inside, other=0.0)
    second = tl.load(pointers + HALF + column, mask=(column < HALF) & inside, other=0.0)
    rest = tl.load(pointers + 2 * HALF + passing, mask=(passing < REST) & inside, other=0.0)
    return first.to(tl.float32), second.to(tl.float32), rest.to(tl.float32)


@triton.jit
def _store_heads(
    pointers, inside, first, second, rest, HALF: tl.constexpr, REST: tl.constexpr,
    BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK_HALF)[None, :]
    passing = tl.arange(0, BLOCK_REST)[None, :]
    dtype = pointers.dtype.element_ty
    tl.store(pointers + column, first.to(dtype), mask=(column < HALF) & inside)
    tl.store(pointers + HALF + column, second.to(dtype), mask=(column < HALF) & inside)
    tl.store(pointers + 2 * HALF + passing, rest.to(dtype), mask=(passing < REST) & inside)


@triton.jit
def _angles(cos_ptr, sin_ptr, positions_ptr, token, table_row, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """cos and sin (1, BLOCK_HALF) of a token: the halves of a table row are equal, the first is read."""
    column = tl.arange(0, BLOCK_HALF)[None, :]
    start = tl.load(positions_ptr + token).to(tl.int64) * table_row
    cos = tl.load(cos_ptr + start + column, mask=column < HALF, other=0.0)
    sin = tl.load(sin_ptr + start + column, mask=column < HALF, other=0.0)
    return cos.to(tl.float32), sin.to(tl.float32)


@triton.jit
def _turn(
    x, out, weight_ptr, x_head, out_head, cos, sin, eps, offset, BEGIN: tl.constexpr, END: tl.constexpr,
    SIZE: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """Normalises (where there is a weight) and turns heads BEGIN to END of the token at ``x``."""
    if weight_ptr is not None:
        first_weight, second_weight, rest_weight = _load_heads(
            weight_ptr, True, HALF, REST, BLOCK_HALF, BLOCK_REST
        )
    for start in range(BEGIN, END, BLOCK_HEADS):
        head = start + tl.arange(0, BLOCK_HEADS)[:, None]
        first, second, rest = _load_heads(
            x + head * x_head, head < END, HALF, REST, BLOCK_HALF, BLOCK_REST
        )  # fmt: skip
        if weight_ptr is not None:
            squares = tl.sum(first * first + second * second, axis=1, keep_dims=True)
            squares += tl.sum(rest * rest, axis=1, keep_dims=True)
            scale = tl.rsqrt(squares / SIZE + eps)
            first *= scale * (offset + first_weight)
            second *= scale * (offset + second_weight)
            rest *= scale * (offset + rest_weight)
        _store_heads(
            out + head * out_head, head < END, first * cos - second * sin, second * cos + first * sin, rest,
            HALF, REST, BLOCK_HALF, BLOCK_REST,
        )  # fmt: skip


@triton.jit
def _heads_of(
    token, q_ptr, k_ptr, v_ptr, q_token, q_head, k_token, k_head, v_token, v_head,
    QUERIES: tl.constexpr, ROTATED: tl.constexpr,
):  # fmt: skip
    """A token's queries, keys and values, each so that its heads count on from those before."""
    q = q_ptr + token * q_token
    k = k_ptr + token * k_token - QUERIES * k_head
    v = v_ptr + token * v_token - ROTATED * v_head
    return q, k, v


@triton.jit
def rotate_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, cos_ptr, sin_ptr, positions_ptr, q_weight_ptr, k_weight_ptr,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head, table_row, eps, offset,
    QUERIES: tl.constexpr, ROTATED: tl.constexpr, WRITTEN: tl.constexpr,
    SIZE: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, TRANSPOSED: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """One token. Heads below ROTATED turn, the first QUERIES with the queries' weight; others are copied."""
    token = tl.program_id(0).to(tl.int64)
    cos, sin = _angles(cos_ptr, sin_ptr, positions_ptr, token, table_row, HALF, BLOCK_HALF)
    if TRANSPOSED:
        sin = -sin
    q, k, v = _heads_of(token, q_ptr, k_ptr, v_ptr, q_token, q_head, k_token, k_head, v_token, v_head,
                        QUERIES, ROTATED)  # fmt: skip
    out = out_ptr + token * out_token
    _turn(q, out, q_weight_ptr, q_head, out_head, cos, sin, eps, offset, 0, QUERIES,
          SIZE, HALF, REST, BLOCK_HEADS, BLOCK_HALF, BLOCK_REST)  # fmt: skip
    _turn(k, out, k_weight_ptr, k_head, out_head, cos, sin, eps, offset, QUERIES, ROTATED,
          SIZE, HALF, REST, BLOCK_HEADS, BLOCK_HALF, BLOCK_REST)  # fmt: skip
    _turn(v, out, None, v_head, out_head, 1.0, 0.0, eps, offset, ROTATED, WRITTEN,
          SIZE, HALF, REST, BLOCK_HEADS, BLOCK_HALF, BLOCK_REST)  # fmt: skip


@triton.jit
def _turn_back(
    gradient, x, out, weight_ptr, gradient_head, x_head, out_head, cos, sin, eps, offset,
    first_total, second_total, rest_total, BEGIN: tl.constexpr, END: tl.constexpr,
    SIZE: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """Through the rotation and the norm of heads BEGIN to END; the totals grow by the weight's gradient."""
    first_weight, second_weight, rest_weight = _load_heads(
        weight_ptr, True, HALF, REST, BLOCK_HALF, BLOCK_REST
    )
    for start in range(BEGIN, END, BLOCK_HEADS):
        head = start + tl.arange(0, BLOCK_HEADS)[:, None]
        inside = head < END
        first_turned, second_turned, drest = _load_heads(
            gradient + head * gradient_head, inside, HALF, REST, BLOCK_HALF, BLOCK_REST
        )
        first, second, rest = _load_heads(x + head * x_head, inside, HALF, REST, BLOCK_HALF, BLOCK_REST)
        squares = tl.sum(first * first + second * second, axis=1, keep_dims=True)
        squares += tl.sum(rest * rest, axis=1, keep_dims=True)
        scale = tl.rsqrt(squares / SIZE + eps)
        first, second, rest = first * scale, second * scale, rest * scale
        dfirst = first_turned * cos + second_turned * sin
        dsecond = second_turned * cos - first_turned * sin
        first_total += dfirst * first
        second_total += dsecond * second
        rest_total += drest * rest
        dfirst *= offset + first_weight
        dsecond *= offset + second_weight
        drest *= offset + rest_weight
        mean = tl.sum(dfirst * first + dsecond * second, axis=1, keep_dims=True)
        mean = (mean + tl.sum(drest * rest, axis=1, keep_dims=True)) / SIZE
        _store_heads(
            out + head * out_head, inside,
            scale * (dfirst - first * mean), scale * (dsecond - second * mean), scale * (drest - rest * mean),
            HALF, REST, BLOCK_HALF, BLOCK_REST,
        )  # fmt: skip
    return first_total, second_total, rest_total


@triton.jit
def _store_total(
    partial, first_total, second_total, rest_total, HALF: tl.constexpr, REST: tl.constexpr,
    BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    first = tl.sum(first_total, axis=0, keep_dims=True)
    second = tl.sum(second_total, axis=0, keep_dims=True)
    rest = tl.sum(rest_total, axis=0, keep_dims=True)
    _store_heads(partial, True, first, second, rest, HALF, REST, BLOCK_HALF, BLOCK_REST)


@triton.jit(do_not_specialize=["tokens"])
def norm_backward_kernel(
    q_ptr, k_ptr, v_ptr, x_ptr, out_ptr,
    cos_ptr, sin_ptr, positions_ptr, q_weight_ptr, k_weight_ptr, partial_ptr,
    tokens, steps, q_token, q_head, k_token, k_head, v_token, v_head, x_token, x_head, out_token, out_head,
    table_row, eps, offset,
    QUERIES: tl.constexpr, ROTATED: tl.constexpr, WRITTEN: tl.constexpr,
    SIZE: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """``steps`` tokens; ``partial_ptr`` (programs, 2, SIZE), if any, takes their part of both gradients."""
    group = tl.program_id(0).to(tl.int64)
    q_first = tl.zeros((BLOCK_HEADS, BLOCK_HALF), dtype=tl.float32)
    q_second = tl.zeros((BLOCK_HEADS, BLOCK_HALF), dtype=tl.float32)
    q_rest = tl.zeros((BLOCK_HEADS, BLOCK_REST), dtype=tl.float32)
    k_first = tl.zeros((BLOCK_HEADS, BLOCK_HALF), dtype=tl.float32)
    k_second = tl.zeros((BLOCK_HEADS, BLOCK_HALF), dtype=tl.float32)
    k_rest = tl.zeros((BLOCK_HEADS, BLOCK_REST), dtype=tl.float32)
    for step in range(0, steps):
        token = group * steps + step
        if token < tokens:
            cos, sin = _angles(cos_ptr, sin_ptr, positions_ptr, token, table_row, HALF, BLOCK_HALF)
            q, k, v = _heads_of(token, q_ptr, k_ptr, v_ptr, q_token, q_head, k_token, k_head, v_token, v_head,
                                QUERIES, ROTATED)  # fmt: skip
            x = x_ptr + token * x_token
            out = out_ptr + token * out_token
            q_first, q_second, q_rest = _turn_back(
                q, x, out, q_weight_ptr, q_head, x_head, out_head, cos, sin, eps, offset,
                q_first, q_second, q_rest, 0, QUERIES,
                SIZE, HALF, REST, BLOCK_HEADS, BLOCK_HALF, BLOCK_REST,
            )  # fmt: skip
            k_first, k_second, k_rest = _turn_back(
                k, x, out, k_weight_ptr, k_head, x_head, out_head, cos, sin, eps, offset,
                k_first, k_second, k_rest, QUERIES, ROTATED,
                SIZE, HALF, REST, BLOCK_HEADS, BLOCK_HALF, BLOCK_REST,
            )  # fmt: skip
            _turn(v, out, None, v_head, out_head, 1.0, 0.0, eps, offset, ROTATED, WRITTEN,
                  SIZE, HALF, REST, BLOCK_HEADS, BLOCK_HALF, BLOCK_REST)  # fmt: skip
    if partial_ptr is not None:
        partial = partial_ptr + group * 2 * SIZE
        _store_total(partial, q_first, q_second, q_rest, HALF, REST, BLOCK_HALF, BLOCK_REST)
        _store_total(partial + SIZE, k_first, k_second, k_rest, HALF, REST, BLOCK_HALF, BLOCK_REST)


def constants(heads: int, rotated: int, written: int, size: int, half: int, rest: int) -> dict[str, int]:
    """The ``constexpr`` arguments that both kernels take."""
    return {
        "QUERIES": heads, "ROTATED": rotated, "WRITTEN": written, "SIZE": size, "HALF": half, "REST": rest,
        "BLOCK_HEADS": _BLOCK_HEADS, "BLOCK_HALF": triton.next_power_of_2(half),
        "BLOCK_REST": triton.next_power_of_2(max(rest, 1)),
    }  # fmt: skip


def warps(launch: dict[str, int]) -> int:
    """As many as leave a thread at most 16 elements a tensor: two 16-byte accesses in 16-bit types."""
    rest = launch["BLOCK_REST"] if launch["REST"] else 0
    elements = launch["BLOCK_HEADS"] * (2 * launch["BLOCK_HALF"] + rest)
    return min(8, triton.next_power_of_2(triton.cdiv(elements, 512)))


def _compilations() -> tuple[Compilation, ...]:
    """Plain and partial; forward with a norm, transposed without; with and without weight gradients."""
    weights = {"q_weight_ptr": "*T", "k_weight_ptr": "*T"}
    missing = dict.fromkeys(weights, None)
    apart = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), "*T")
    tables = {"out_ptr": "*T", "cos_ptr": "*fp32", "sin_ptr": "*fp32", "positions_ptr": "*i64"}
    data = {**apart, **tables}
    steps = ("q_token", "q_head", "k_token", "k_head", "v_token", "v_head")
    strides = dict.fromkeys((*steps, "out_token", "out_head", "table_row"), "i32")
    scalars = {**strides, "eps": "fp32", "offset": "fp32"}
    more = dict.fromkeys(("tokens", "steps", "x_token", "x_head"), "i32")
    found = []
    for launch in (constants(32, 40, 48, 128, 64, 0), constants(16, 18, 20, 256, 32, 192)):
        kinds, count = dict.fromkeys(launch, "constexpr"), warps(launch)
        for norm in (False, True):
            kind = weights if norm else dict.fromkeys(weights, "constexpr")
            values = {**launch, "TRANSPOSED": not norm, **({} if norm else missing)}
            signature = {**data, **kind, **scalars, **kinds, "TRANSPOSED": "constexpr"}
            found.append(Compilation(rotate_kernel, signature, values, count))
        for partial in ("*fp32", "constexpr"):
            values = {**launch, **({} if partial == "*fp32" else {"partial_ptr": None})}
            pointers = {**apart, "x_ptr": "*T", **tables, **weights, "partial_ptr": partial}
            signature = {**pointers, **more, **scalars, **kinds}
            found.append(Compilation(norm_backward_kernel, signature, values, count))
    return tuple(found)


COMPILATIONS = _compilations()
