"""Triton functions of attention over packed documents: FlashAttention-2 (Dao 2023) on intervals.

Token i sees the keys [first_i, stop_i); key j is seen by the queries [seen_from_j, seen_to_j). Causality,
windows and document borders are all in these four numbers (`bounds_kernel`), which never decrease along the
row. So a tile of queries may span documents: its keys run from the first row's ``first`` to the last row's
``stop``, and the part between the last row's ``first`` and the first row's ``stop`` is seen by all rows and
needs no mask. Short documents share tiles, and the grid depends on T alone, not on the documents.

Dropout of the weights (where DROPS) is a function of a seed, the query's row and the key's token, see
:mod:`.dropout`: no mask is kept, and the sum of a row's weights is taken before they are dropped.

Scores are kept in units of log2, for exp2. The gradient of the queries has a kernel of its own instead of
atomic additions, so that every result is deterministic; grouped heads are summed in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .dropout import row_word, stays

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["tokens", "documents", "steps", "back", "ahead"])
def bounds_kernel(
    offsets,
    bounds,  # (4, T) int32: first, stop, seen_from, seen_to
    tokens,
    documents,
    steps,  # halvings that bring `documents` down to one
    back,
    ahead,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < tokens
    low = tl.zeros([BLOCK], tl.int32)
    high = low + documents
    for _ in range(steps):
        middle = (low + high) // 2
        begun = tl.load(offsets + middle) <= token
        low = tl.where(begun, middle, low)
        high = tl.where(begun, high, middle)
    begin = tl.load(offsets + low)
    end = tl.load(offsets + low + 1)
    tl.store(bounds + token, tl.maximum(begin, token - back), inside)
    tl.store(bounds + tokens + token, tl.minimum(end, token + ahead + 1), inside)
    tl.store(bounds + 2 * tokens + token, tl.maximum(begin, token - ahead), inside)
    tl.store(bounds + 3 * tokens + token, tl.minimum(end, token + back + 1), inside)


@triton.jit
def _parts(lower, upper, start, tokens, TILE: tl.constexpr, STEP: tl.constexpr):
    """The other side of a tile: where it begins, how many steps need a mask before the common part, where the
    common part begins and ends, and how many steps need a mask after it."""
    last = tl.minimum(start + TILE, tokens) - 1
    begin = tl.load(lower + start)
    common = tl.load(lower + last)
    before = (common - begin + STEP - 1) // STEP
    inner = begin + before * STEP
    outer = inner + tl.maximum(tl.load(upper + start) - inner, 0) // STEP * STEP
    after = (tl.maximum(tl.load(upper + last) - outer, 0) + STEP - 1) // STEP
    return begin, before, inner, outer, after


@triton.jit
def _load(
    pointer, start, row_stride, column, tokens,
    ROWS: tl.constexpr, E: tl.constexpr, MASKED: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    """ROWS rows of one head from ``start`` on; columns past E, and where MASKED rows past the last token, are
    zero. Only the first row's place needs 64 bits, and only it changes from step to step."""
    row = tl.arange(0, ROWS)
    places = pointer + tl.cast(start, tl.int64) * row_stride + (row[:, None] * row_stride + column[None, :])
    if MASKED:
        values = tl.load(places, (start + row < tokens)[:, None] & (column < E)[None, :], other=0.0)
    elif column.shape[0] == E:
        values = tl.load(places)
    else:
        values = tl.load(places, (column < E)[None, :], other=0.0)
    return values.to(tl.float32) if CAST else values


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (1.0 + tl.exp2(x * (2.0 * LOG2E)))


@triton.jit
def _attend(
    accumulator, maximum, total, q, k, v, column, key_start, first, stop, k_token, v_token, tokens, scale,
    softcap, words, threshold, kept, E: tl.constexpr, STEP: tl.constexpr, CAPPED: tl.constexpr,
    DROPS: tl.constexpr, MASKED: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax over STEP keys."""
    key = key_start + tl.arange(0, STEP)
    keys = _load(k, key_start, k_token, column, tokens, STEP, E, MASKED, CAST)
    scores = tl.dot(q, tl.trans(keys), input_precision="ieee")
    if CAPPED:
        scores = _tanh(scores * (scale / softcap)) * (softcap * LOG2E)
        factor = 1.0
    else:
        factor = scale * LOG2E
    if MASKED:
        seen = (key[None, :] >= first[:, None]) & (key[None, :] < stop[:, None])
        scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(maximum, tl.max(scores, 1) * factor)
    weights = tl.exp2(scores * factor - higher[:, None])
    shrink = tl.exp2(maximum - higher)
    total = total * shrink + tl.sum(weights, 1)
    if DROPS:
        weights = tl.where(stays(words[:, None], key[None, :], threshold), weights * kept, 0.0)
    values = _load(v, key_start, v_token, column, tokens, STEP, E, MASKED, CAST)
    accumulator = tl.dot(
        weights.to(values.dtype), values, accumulator * shrink[:, None], input_precision="ieee"
    )
    return accumulator, higher, total


@triton.jit(do_not_specialize=["tokens", "threshold"])
def forward_kernel(
    q, k, v, o, lse, bounds, tokens, q_token, q_head, k_token, k_head, v_token, v_head, o_token, o_head,
    scale, softcap, seed, threshold, kept, MEMBERS: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr,
    TILE: tl.constexpr, STEP: tl.constexpr, CAPPED: tl.constexpr, DROPS: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of a tile of queries of one head; last tiles, longest if causal, go first."""
    head = tl.program_id(0).to(tl.int64)
    start = (tl.num_programs(1) - 1 - tl.program_id(1)) * TILE
    row = start + tl.arange(0, TILE)
    column = tl.arange(0, BLOCK_E)
    inside = row < tokens
    first = tl.load(bounds + row, inside, other=0)
    stop = tl.load(bounds + tokens + row, inside, other=0)
    queries = _load(q + head * q_head, start, q_token, column, tokens, TILE, E, True, CAST)
    k += head // MEMBERS * k_head
    v += head // MEMBERS * v_head

    words = row_word(head * tokens + row, tl.load(seed)) if DROPS else row
    accumulator = tl.zeros([TILE, BLOCK_E], tl.float32)
    # Finite, so that a row that has not met a key of its own yet keeps weights of zero instead of NaN.
    maximum = tl.full([TILE], -1.0e38, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    begin, before, inner, outer, after = _parts(bounds, bounds + tokens, start, tokens, TILE, STEP)
    for key_start in range(inner, outer, STEP):
        accumulator, maximum, total = _attend(
            accumulator, maximum, total, queries, k, v, column, key_start, first, stop, k_token, v_token,
            tokens, scale, softcap, words, threshold, kept, E, STEP, CAPPED, DROPS, False, CAST,
        )  # fmt: skip
    for step in range(before + after):
        key_start = tl.where(step < before, begin + step * STEP, outer + (step - before) * STEP)
        accumulator, maximum, total = _attend(
            accumulator, maximum, total, queries, k, v, column, key_start, first, stop, k_token, v_token,
            tokens, scale, softcap, words, threshold, kept, E, STEP, CAPPED, DROPS, True, CAST,
        )  # fmt: skip

    total = tl.where(inside, total, 1.0)
    tl.store(lse + head * tokens + row, (maximum + tl.log2(total)) * LN2, inside)
    places = o + head * o_head + row.to(tl.int64)[:, None] * o_token + column[None, :]
    result = (accumulator / total[:, None]).to(o.dtype.element_ty)
    tl.store(places, result, inside[:, None] & (column < E)[None, :])


@triton.jit
def _weights(scores, lse, scale, softcap, CAPPED: tl.constexpr):
    """Softmax weights from q·k and a log-sum-exp in log2, and the derivative of the softcap."""
    if CAPPED:
        bent = _tanh(scores * (scale / softcap))
        return tl.exp2(bent * (softcap * LOG2E) - lse), 1.0 - bent * bent
    else:
        return tl.exp2(scores * (scale * LOG2E) - lse), 1.0


@triton.jit
def _query_gradient(
    accumulator, queries, outer_gradient, lse, delta, k, v, column, key_start, first, stop, k_token, v_token,
    tokens, scale, softcap, words, threshold, kept, E: tl.constexpr, STEP: tl.constexpr,
    CAPPED: tl.constexpr, DROPS: tl.constexpr, MASKED: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    """What STEP keys add to the gradient of a tile of queries."""
    key = key_start + tl.arange(0, STEP)
    keys = _load(k, key_start, k_token, column, tokens, STEP, E, MASKED, CAST)
    values = _load(v, key_start, v_token, column, tokens, STEP, E, MASKED, CAST)
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    weights, slope = _weights(scores, lse[:, None], scale, softcap, CAPPED)
    if MASKED:
        seen = (key[None, :] >= first[:, None]) & (key[None, :] < stop[:, None])
        weights = tl.where(seen, weights, 0.0)
    pull = tl.dot(outer_gradient, tl.trans(values), input_precision="ieee")
    if DROPS:
        pull = tl.where(stays(words[:, None], key[None, :], threshold), pull * kept, 0.0)
    change = (weights * (pull - delta[:, None]) * slope).to(keys.dtype)
    return tl.dot(change, keys, accumulator, input_precision="ieee")


@triton.jit(do_not_specialize=["tokens", "threshold"])
def query_gradient_kernel(
    do, q, k, v, o, lse, delta, dq, bounds, tokens, do_token, do_head, q_token, q_head, k_token, k_head,
    v_token, v_head, o_token, o_head, dq_token, dq_head, scale, softcap, seed, threshold, kept,
    MEMBERS: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
    CAPPED: tl.constexpr, DROPS: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of queries of one head, and delta = sum(do o) of its rows for the other kernel."""
    head = tl.program_id(0).to(tl.int64)
    start = (tl.num_programs(1) - 1 - tl.program_id(1)) * TILE
    row = start + tl.arange(0, TILE)
    column = tl.arange(0, BLOCK_E)
    inside = row < tokens
    first = tl.load(bounds + row, inside, other=0)
    stop = tl.load(bounds + tokens + row, inside, other=0)
    queries = _load(q + head * q_head, start, q_token, column, tokens, TILE, E, True, CAST)
    outer_gradient = _load(do + head * do_head, start, do_token, column, tokens, TILE, E, True, CAST)
    output = _load(o + head * o_head, start, o_token, column, tokens, TILE, E, True, CAST)
    rows_lse = tl.load(lse + head * tokens + row, inside, other=0.0) * LOG2E
    rows_delta = tl.sum(outer_gradient.to(tl.float32) * output.to(tl.float32), 1)
    tl.store(delta + head * tokens + row, rows_delta, inside)
    k += head // MEMBERS * k_head
    v += head // MEMBERS * v_head

    words = row_word(head * tokens + row, tl.load(seed)) if DROPS else row
    accumulator = tl.zeros([TILE, BLOCK_E], tl.float32)
    begin, before, inner, outer, after = _parts(bounds, bounds + tokens, start, tokens, TILE, STEP)
    for key_start in range(inner, outer, STEP):
        accumulator = _query_gradient(
            accumulator, queries, outer_gradient, rows_lse, rows_delta, k, v, column, key_start, first, stop,
            k_token, v_token, tokens, scale, softcap, words, threshold, kept, E, STEP, CAPPED, DROPS, False,
            CAST,
        )  # fmt: skip
    for step in range(before + after):
        key_start = tl.where(step < before, begin + step * STEP, outer + (step - before) * STEP)
        accumulator = _query_gradient(
            accumulator, queries, outer_gradient, rows_lse, rows_delta, k, v, column, key_start, first, stop,
            k_token, v_token, tokens, scale, softcap, words, threshold, kept, E, STEP, CAPPED, DROPS, True,
            CAST,
        )  # fmt: skip

    places = dq + head * dq_head + row.to(tl.int64)[:, None] * dq_token + column[None, :]
    tl.store(places, (accumulator * scale).to(dq.dtype.element_ty), inside[:, None] & (column < E)[None, :])


@triton.jit
def _key_gradient(
    dk, dv, keys, values, q, do, lse, delta, column, query_start, seen_from, seen_to, q_token, do_token,
    tokens, scale, softcap, key, first_row, word, threshold, kept, E: tl.constexpr, STEP: tl.constexpr,
    CAPPED: tl.constexpr, DROPS: tl.constexpr, MASKED: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    """What STEP queries add to the gradients of a tile of keys and values; scores stand transposed."""
    query = query_start + tl.arange(0, STEP)
    queries = _load(q, query_start, q_token, column, tokens, STEP, E, MASKED, CAST)
    outer_gradient = _load(do, query_start, do_token, column, tokens, STEP, E, MASKED, CAST)
    if MASKED:
        columns_lse = tl.load(lse + query, query < tokens, other=0.0) * LOG2E
        columns_delta = tl.load(delta + query, query < tokens, other=0.0)
    else:
        columns_lse = tl.load(lse + query) * LOG2E
        columns_delta = tl.load(delta + query)
    scores = tl.dot(keys, tl.trans(queries), input_precision="ieee")
    weights, slope = _weights(scores, columns_lse[None, :], scale, softcap, CAPPED)
    if MASKED:
        seen = (query[None, :] >= seen_from[:, None]) & (query[None, :] < seen_to[:, None])
        weights = tl.where(seen, weights, 0.0)
    pull = tl.dot(values, tl.trans(outer_gradient), input_precision="ieee")
    used = weights
    if DROPS:
        stay = stays(row_word(first_row + query, word)[None, :], key[:, None], threshold)
        used = tl.where(stay, weights * kept, 0.0)
        pull = tl.where(stay, pull * kept, 0.0)
    dv = tl.dot(used.to(outer_gradient.dtype), outer_gradient, dv, input_precision="ieee")
    change = (weights * (pull - columns_delta[None, :]) * slope).to(queries.dtype)
    return tl.dot(change, queries, dk, input_precision="ieee"), dv


@triton.jit(do_not_specialize=["tokens", "threshold"])
def key_gradient_kernel(
    do, q, k, v, lse, delta, dk, dv, bounds, tokens, do_token, do_head, q_token, q_head, k_token, k_head,
    v_token, v_head, dk_token, dk_head, dv_token, dv_head, scale, softcap, seed, threshold, kept,
    MEMBERS: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
    CAPPED: tl.constexpr, DROPS: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values of one key/value head, summed over its query heads."""
    group = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * TILE
    row = start + tl.arange(0, TILE)
    column = tl.arange(0, BLOCK_E)
    inside = row < tokens
    lower, upper = bounds + 2 * tokens, bounds + 3 * tokens
    seen_from = tl.load(lower + row, inside, other=0)
    seen_to = tl.load(upper + row, inside, other=0)
    keys = _load(k + group * k_head, start, k_token, column, tokens, TILE, E, True, CAST)
    values = _load(v + group * v_head, start, v_token, column, tokens, TILE, E, True, CAST)

    word = tl.load(seed) if DROPS else 0
    keys_gradient = tl.zeros([TILE, BLOCK_E], tl.float32)
    values_gradient = tl.zeros([TILE, BLOCK_E], tl.float32)
    begin, before, inner, outer, after = _parts(lower, upper, start, tokens, TILE, STEP)
    for member in range(MEMBERS):
        head = group * MEMBERS + member
        head_q, head_do = q + head * q_head, do + head * do_head
        head_lse, head_delta = lse + head * tokens, delta + head * tokens
        for query_start in range(inner, outer, STEP):
            keys_gradient, values_gradient = _key_gradient(
                keys_gradient, values_gradient, keys, values, head_q, head_do, head_lse, head_delta, column,
                query_start, seen_from, seen_to, q_token, do_token, tokens, scale, softcap, row,
                head * tokens, word, threshold, kept, E, STEP, CAPPED, DROPS, False, CAST,
            )  # fmt: skip
        for step in range(before + after):
            query_start = tl.where(step < before, begin + step * STEP, outer + (step - before) * STEP)
            keys_gradient, values_gradient = _key_gradient(
                keys_gradient, values_gradient, keys, values, head_q, head_do, head_lse, head_delta, column,
                query_start, seen_from, seen_to, q_token, do_token, tokens, scale, softcap, row,
                head * tokens, word, threshold, kept, E, STEP, CAPPED, DROPS, True, CAST,
            )  # fmt: skip

    stored = inside[:, None] & (column < E)[None, :]
    row64 = row.to(tl.int64)[:, None]
    dk += group * dk_head + row64 * dk_token + column[None, :]
    dv += group * dv_head + row64 * dv_token + column[None, :]
    tl.store(dk, (keys_gradient * scale).to(dk.dtype.element_ty), stored)
    tl.store(dv, values_gradient.to(dv.dtype.element_ty), stored)
