"""Triton functions over rows of logits, shared by the losses that end in a softmax over a vocabulary.

A row of products x (hidden state times the head) becomes logits z = outer · tanh(inner · x) with a softcap,
else z = inner · x (:class:`whet.kernels.vocabulary_head.LogitMap`). One program owns one row. The first pass
keeps a running maximum and a running sum of exponentials for every GROUP columns (online softmax, Milakov and
Gimelshein, 2018, arXiv:1805.02867) and brings the groups together once, at the end, so warps never wait for
each other on the way. The second pass writes the gradient over the products, last tile first: what was read
last is still in the L2 cache.

Rows lie ``row_stride`` elements apart and are ``width`` wide, a multiple of 16, so that every access is
aligned and 16 bytes long whatever the vocabulary's size; columns from ``vocabulary`` on hold anything and
become zero.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Below every logit, yet finite: a group without columns must not make inf - inf.
LOWEST = tl.constexpr(-1.0e30)
OUTSIDE = tl.constexpr(-2.0e30)


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (1.0 + tl.exp(2.0 * x))  # exp may overflow to infinity, and 1 is right


@triton.jit
def _logits(x, inner, outer, CAPPED: tl.constexpr):
    """z of the products x, and dz/dx."""
    x = x.to(tl.float32) * inner
    if CAPPED:
        bent = _tanh(x)
        return outer * bent, outer * inner * (1.0 - bent * bent)
    else:
        return x, inner


@triton.jit
def _columns(start, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """Column numbers of one tile, (BLOCK / GROUP, GROUP): a group's columns belong to one thread."""
    groups = tl.arange(0, BLOCK // GROUP)[:, None] * GROUP
    return start + groups + tl.arange(0, GROUP)[None, :]


@triton.jit
def _softmax_statistics(
    row, vocabulary, width, inner, outer, target, label,
    CAPPED: tl.constexpr, MEAN: tl.constexpr, STATISTICS: tl.constexpr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """First pass over a row.

    Returns the greatest z; Σ exp(z - greatest); Σ z if MEAN; and if STATISTICS the entropy and how many
    columns beat the label's (greater, or equal and before it, as argmax breaks ties).
    """
    highest = tl.full([BLOCK // GROUP], LOWEST, tl.float32)
    total = tl.zeros([BLOCK // GROUP], tl.float32)  # Σ exp(z - highest)
    weighted = tl.zeros([BLOCK // GROUP], tl.float32)  # Σ exp(z - highest) · (z - highest)
    plain = tl.zeros([BLOCK // GROUP], tl.float32)  # Σ z
    beaten = tl.zeros([BLOCK // GROUP], tl.int32)
    for start in range(0, width, BLOCK):
        columns = _columns(start, BLOCK, GROUP)
        x = tl.load(row + columns, mask=columns < width, other=0.0, eviction_policy="evict_last")
        z, _ = _logits(x, inner, outer, CAPPED)
        if MEAN:
            plain += tl.sum(tl.where(columns < vocabulary, z, 0.0), 1)
        z = tl.where(columns < vocabulary, z, OUTSIDE)
        higher = tl.maximum(highest, tl.max(z, 1))
        away = z - higher[:, None]
        exponential = tl.exp(away)
        kept = tl.exp(highest - higher)
        if STATISTICS:
            # Before `total` changes: Σ e·(z - higher) = kept · (Σ e·(z - highest) + (highest - higher) · Σ e)
            weighted = kept * (weighted + (highest - higher) * total)
            weighted += tl.sum(exponential * away, 1)
            wins = (z > target) | ((z == target) & (columns < label))
            beaten += tl.sum(wins.to(tl.int32), 1)
        total = total * kept + tl.sum(exponential, 1)
        highest = higher
    top = tl.max(highest, 0)
    shares = tl.exp(highest - top)
    mass = tl.sum(total * shares, 0)
    entropy = tl.log(mass)
    if STATISTICS:
        entropy -= tl.sum(shares * (weighted + (highest - top) * total), 0) / mass
    return top, mass, tl.sum(plain, 0), entropy, tl.sum(beaten, 0)


@triton.jit
def _write_gradient(
    row, vocabulary, width, inner, outer, label, top, of_exponential, of_label, of_all,
    CAPPED: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Second pass: dz = of_exponential · exp(z - top) + of_label · [column is the label] + of_all, as dx."""
    tiles = tl.cdiv(width, BLOCK)
    for tile in range(0, tiles):
        columns = _columns((tiles - 1 - tile) * BLOCK, BLOCK, GROUP)
        x = tl.load(row + columns, mask=columns < width, other=0.0, eviction_policy="evict_first")
        z, slope = _logits(x, inner, outer, CAPPED)
        gradient = of_exponential * tl.exp(z - top) + of_all
        gradient += tl.where(columns == label, of_label, 0.0)
        gradient = tl.where(columns < vocabulary, gradient * slope, 0.0)
        tl.store(row + columns, gradient.to(row.dtype.element_ty), mask=columns < width)


@triton.jit
def _write_zeros(row, width, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    for start in range(0, width, BLOCK):
        columns = _columns(start, BLOCK, GROUP)
        zeros = tl.zeros([BLOCK // GROUP, GROUP], row.dtype.element_ty)
        tl.store(row + columns, zeros, mask=columns < width)


@triton.jit
def _label_of(labels, index, vocabulary, ignore_index):
    """The row's label, whether the row counts, and whether the label is a column at all."""
    label = tl.load(labels + index)
    return label.to(tl.int32), label != ignore_index, (label >= 0) & (label < vocabulary)


@triton.jit
def cross_entropy_rows(
    products, row_stride, labels, losses, lses, entropies, hits, vocabulary, width, ignore_index,
    inner, outer, label_smoothing, z_loss, gradient_scale,
    CAPPED: tl.constexpr, SMOOTHED: tl.constexpr, STATISTICS: tl.constexpr, GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The loss of one row, and with GRADIENT its gradient · gradient_scale in place of the products."""
    index = tl.program_id(0).to(tl.int64)
    row = products + index * row_stride
    label, counts, known = _label_of(labels, index, vocabulary, ignore_index)
    loss = 0.0
    lse = 0.0
    entropy = 0.0
    hit = 0
    if counts:
        target, _ = _logits(tl.load(row + label, mask=known, other=0.0), inner, outer, CAPPED)
        top, mass, plain, entropy, beaten = _softmax_statistics(
            row, vocabulary, width, inner, outer, target, label, CAPPED, SMOOTHED, STATISTICS, BLOCK, GROUP
        )
        lse = top + tl.log(mass)
        loss = tl.log(mass) + (top - target) + z_loss * lse * lse  # exact where the label is far ahead
        if SMOOTHED:
            loss += label_smoothing * (target - plain / vocabulary)
        loss = tl.where(known, loss, float("nan"))  # a label outside the vocabulary must not train in silence
        hit = (beaten == 0).to(tl.int32)
        if GRADIENT:
            tl.debug_barrier()  # the label's product is read before its place is written
            _write_gradient(
                row, vocabulary, width, inner, outer, label, top,
                (1.0 + 2.0 * z_loss * lse) / mass * gradient_scale, (label_smoothing - 1.0) * gradient_scale,
                -label_smoothing / vocabulary * gradient_scale, CAPPED, BLOCK, GROUP,
            )  # fmt: skip
    elif GRADIENT:
        _write_zeros(row, width, BLOCK, GROUP)
    tl.store(losses + index, loss)
    tl.store(lses + index, lse)
    if STATISTICS:
        tl.store(entropies + index, entropy)
        tl.store(hits + index, hit)


@triton.jit
def log_softmax_gradient_rows(
    products, row_stride, labels, lses, upstream, vocabulary, width, ignore_index,
    inner, outer, gradient_scale,
    CAPPED: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """upstream · d log p(label) · gradient_scale in place of a row's products, from its log Σ exp z."""
    index = tl.program_id(0).to(tl.int64)
    row = products + index * row_stride
    label, counts, _ = _label_of(labels, index, vocabulary, ignore_index)
    if counts:
        lse = tl.load(lses + index)
        factor = tl.load(upstream + index).to(tl.float32) * gradient_scale
        _write_gradient(
            row, vocabulary, width, inner, outer, label, lse, -factor, factor, 0.0, CAPPED, BLOCK, GROUP
        )
    else:
        _write_zeros(row, width, BLOCK, GROUP)
