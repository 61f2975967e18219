"""Memory of a step on the fast path: what each half of a layer keeps, and what stands at the worst moments.

A layer's two halves (attention, MLP) each save the residual stream they read, and by choice what they
computed from it. The most is held either while the loss is computed, when everything kept stands, or in the
backward pass of a half, whose passing tensors join what the layers before it keep. Each formula follows the
tensors of :mod:`.fast_path` one by one. Legend as in :mod:`.fast_shape`; T tokens of a micro-batch, C of a
chunk of the MLP, S supervised rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..schedule import Schedule
from .fast_shape import FastShape
from .memory import CUDA_CONTEXT, CUDA_WORKSPACE, PROCESS, Memory

TOKEN_MULTIPLE = 64
"""Packed rows and supervised places are filled up to a multiple of this."""
LOGIT_BYTES = 512 * 2**20
"""Of logits that the loss holds at once."""
FEW_LOGIT_BYTES = 64 * 2**20
"""The same where memory is so short that smaller products are worth it."""
TABLE_STEP = 1024
"""Rotary tables are made for multiples of this many positions."""
BATCH_BYTES = 44
"""A token of a micro-batch on the device: ids, position, place, label, and fp32 results of the loss."""
UNDER_WAY = 4
"""Offloaded tensors that are on the device at once: one in use, three on their way."""
HEAD_BLOCK_BYTES = 128 * 2**20
"""Of a quantised head's rows that are expanded at once."""
GRAPH_FLOPS, GRAPH_LAYER = 5e14, 6e-3
"""A micro-batch is a CUDA graph where its arithmetic at this rate takes less than launching every layer."""
GRAPH_TOKENS = 512
"""Packed rows of a graph are filled up to a multiple of this."""


@dataclass(frozen=True)
class Choice:
    """What :class:`..schedule.Schedule` chooses, for one micro-batch.

    Args:
        tokens: of the micro-batch.
        supervised: share of them with a label.
        longest: tokens of the longest document.
        recompute_attention, recompute_mlp, offload: how many layers, from the first.
        chunk: tokens that go through an MLP at a time; None is all.
        logit_bytes: of logits at once.
        forwards: the loss compares rows, and reads so many passes without a gradient beside (a reference's);
            None for the usual loss.
    """

    tokens: int
    supervised: float = 1.0
    longest: int = 0
    recompute_attention: int = 0
    recompute_mlp: int = 0
    offload: int = 0
    chunk: int | None = None
    logit_bytes: int = LOGIT_BYTES
    forwards: int | None = None

    @property
    def filled(self) -> int:
        """Tokens with the filling."""
        return filled(self.tokens)

    @property
    def at_once(self) -> int:
        """Tokens that an MLP sees at a time."""
        return self.filled if self.chunk is None else min(self.chunk, self.filled)


@dataclass(frozen=True)
class FastPeak:
    """The worst moment of a step; bytes.

    Args:
        kept: activations that wait for their backward pass.
        passing: what the computation of that moment holds beside them.
        loss: whether the moment is the loss, rather than the backward pass of a layer.
        host: pinned memory of the offloaded inputs.
    """

    kept: int
    passing: int
    loss: bool
    host: int

    @property
    def device(self) -> int:
        return self.kept + self.passing


def filled(tokens: int) -> int:
    return -(-tokens // TOKEN_MULTIPLE) * TOKEN_MULTIPLE


def replayed(shape: FastShape, choice: Choice, tokens: float) -> bool:
    """Whether a micro-batch of so many tokens is worth a CUDA graph, and may be one."""
    if choice.forwards is not None or choice.offload or shape.attention == "reference" or shape.dropout:
        return False
    return 6 * shape.matrix * tokens / GRAPH_FLOPS <= GRAPH_LAYER * shape.layers


# --- bytes a token


def stream_bytes(shape: FastShape) -> int:
    """Both halves' input, which an offloaded layer keeps in host memory."""
    return 2 * shape.w * shape.width


def always_kept(shape: FastShape) -> int:
    """Of both halves whatever is recomputed: rstd in fp32, and t of the output projections."""
    return 2 * 4 + shape.w * (shape.out.rank + shape.down.rank)


def attention_kept(shape: FastShape) -> int:
    """q, k, v (before the heads' norm where there is one), t, attention's output and log-sums."""
    extra = 16 if shape.attention == "triton" else 0  # bounds of each token's document
    plain = shape.w * shape.width if shape.post_norms else 0
    wide = shape.w * (shape.qkv.outputs + shape.qkv.rank + shape.q)
    return wide + 4 * shape.heads + extra + plain


def mlp_kept(shape: FastShape) -> int:
    """Gate and up, and t."""
    plain = shape.w * shape.width if shape.post_norms else 0
    return shape.w * (2 * shape.mlp + shape.gate_up.rank) + plain


# --- passing tensors


def mlp_passing(shape: FastShape, choice: Choice, dropped: bool) -> int:
    """At the gated unit's backward pass: dh beside the product h, in a chunk; dx and its source whole."""
    w, width, mlp = shape.w, shape.width, shape.mlp
    a_token = w * (width + shape.gate_up.rank) + w * (mlp + shape.down.rank) + w * mlp
    if dropped:
        a_token += w * (2 * mlp + shape.gate_up.rank)
    if shape.post_norms or shape.scaled:
        a_token += w * width * (2 if dropped and shape.post_norms else 1)
    if shape.dropout:
        a_token += 2 * w * mlp  # the mask and what it leaves
    if shape.fp8:
        a_token += (w + 1) * width
    return 2 * w * width * choice.filled + a_token * choice.at_once


def forward_passing(shape: FastShape, choice: Choice) -> int:
    """At the gated unit of a pass without a gradient: x and delta whole; norm, gate, up, product a chunk."""
    a_token = shape.width + shape.gate_up.rank + 3 * shape.mlp + shape.down.rank
    return shape.w * (2 * shape.width * choice.filled + a_token * choice.at_once)


def attention_passing(shape: FastShape, choice: Choice, dropped: bool) -> int:
    """At attention's own backward pass: the normalised input, dO, dQKV, and what the back end holds."""
    w, width = shape.w, shape.width
    a_token = w * width + w * (width + shape.qkv.rank) + w * shape.q
    a_token += w * shape.qkv.outputs * (2 if shape.qk_norm else 1)  # dQKV, and the rotated heads
    if dropped:
        a_token += attention_kept(shape)
    if shape.post_norms or shape.scaled:
        a_token += w * width
    if shape.fp8:
        a_token += width
    return choice.filled * (a_token + _back_end(shape, choice))


def _back_end(shape: FastShape, choice: Choice) -> int:
    """Bytes a token that the attention's backward pass allocates for itself.

    The libraries: dQ summed in fp32; dK and dV of every query head, to be summed over a group's; the three
    results; two fp32 statistics a head. (cuDNN took 708 MiB for 16,384 tokens of 32 heads of 128.)
    """
    w, q = shape.w, shape.q
    if shape.attention == "triton":
        return 4 * shape.heads
    if shape.attention == "reference":
        return 4 * 4 * shape.heads * choice.longest + 6 * 4 * q
    grouped = 2 * w * q if shape.k < q else 0
    return 4 * q + grouped + w * shape.qkv.outputs + 8 * shape.heads


def loss_passing(shape: FastShape, choice: Choice) -> int:
    """Final norm's input, the supervised rows and their gradient, a chunk of logits; a trained head's own."""
    w, width = shape.w, shape.width
    rows = filled(round(choice.tokens * choice.supervised))
    at_once = chunk_rows(rows, shape.vocabulary, w, choice.logit_bytes)
    logits = w * at_once * (-(-shape.vocabulary // 64) * 64)
    head = (4 + w) * shape.vocabulary * width if shape.head_trains else 0
    if shape.head_expands:
        head = HEAD_BLOCK_BYTES + 4 * width * at_once
    return w * width * choice.filled + 2 * w * width * rows + logits + head


def chunk_rows(rows: int, vocabulary: int, w: int, logit_bytes: int = LOGIT_BYTES) -> int:
    """Rows whose logits stand at once, as :func:`whet.kernels.vocabulary_head.chunk_rows` counts them."""
    most = max(1, logit_bytes // (vocabulary * w))
    if most >= rows:
        return max(1, rows)
    even = -(-rows // -(-rows // most))
    tiles = -(-even // 128) * 128
    return tiles if tiles <= most else even


# --- the worst moment


def kept_before(shape: FastShape, choice: Choice, layer: int) -> int:
    """Bytes that the layers before ``layer`` keep on the device for their backward pass."""
    a_token = (
        layer * always_kept(shape)
        + max(0, layer - choice.offload) * stream_bytes(shape)
        + max(0, layer - choice.recompute_attention) * attention_kept(shape)
        + max(0, layer - choice.recompute_mlp) * mlp_kept(shape)
    )
    return a_token * choice.filled


def fast_peak(shape: FastShape, choice: Choice) -> FastPeak:
    """The most that a micro-batch holds beside weights and optimizer."""
    workspace = 0
    if replayed(shape, choice, choice.tokens):
        # What captures a graph is a stream with workspaces of its own.
        workspace = CUDA_WORKSPACE
        choice = replace(choice, tokens=-(-choice.tokens // GRAPH_TOKENS) * GRAPH_TOKENS)
    tokens, layers = choice.filled, shape.layers
    stream, mlp = stream_bytes(shape) * tokens, mlp_kept(shape) * tokens
    moments = [(kept_before(shape, choice, layers), loss_passing(shape, choice), True)]
    # Between two of these layers every later one holds more.
    lasts = {layers, choice.recompute_attention, choice.recompute_mlp, choice.offload}
    for layer in (last - 1 for last in lasts if last):
        dropped = layer < choice.recompute_mlp
        moments.append((kept_before(shape, choice, layer + 1), mlp_passing(shape, choice, dropped), False))
        gone = (0 if dropped else mlp) + (0 if layer < choice.offload else stream // 2)
        dropped = layer < choice.recompute_attention
        moments.append(
            (kept_before(shape, choice, layer + 1) - gone, attention_passing(shape, choice, dropped), False)
        )
    if choice.forwards:  # a reference reads the rows while the activations wait
        moments.append((kept_before(shape, choice, layers), forward_passing(shape, choice), False))
    if shape.embedding_trains:  # the last gradient of all, whole before it is added to the buffer
        moments.append((0, 4 * shape.vocabulary * shape.width, False))
    batch = BATCH_BYTES * tokens + 8 * shape.rotary * (-(-choice.longest // TABLE_STEP) * TABLE_STEP)
    batch += workspace + (UNDER_WAY * stream // 2 if choice.offload else 0)
    kept, passing, loss = max(moments, key=lambda moment: moment[0] + moment[1])
    return FastPeak(kept + batch, passing, loss, host_bytes(shape, choice))


def host_bytes(shape: FastShape, choice: Choice) -> int:
    """Pinned memory: both halves' inputs, and attention's results where the rest of it is recomputed."""
    tokens = choice.filled
    inputs = 2 * _pinned(shape.w * shape.width * tokens)
    results = _pinned(shape.w * shape.q * tokens) + _pinned(4 * shape.heads * tokens)
    return choice.offload * inputs + min(choice.offload, choice.recompute_attention) * results


def _pinned(size: int) -> int:
    """PyTorch pins host memory in powers of two."""
    return 1 << (size - 1).bit_length()


def allocated(shape: FastShape, peak: FastPeak) -> int:
    """What PyTorch's allocator holds at the peak: all but the context."""
    workspace = 0 if shape.attention == "reference" else CUDA_WORKSPACE
    return sum(shape.static.values()) + peak.device + workspace


def choice_of(schedule: Schedule, supervised: float, longest: int, forwards: int | None = None) -> Choice:
    """The largest micro-batch that a schedule lets through."""
    return Choice(
        tokens=schedule.budget,
        supervised=supervised,
        longest=longest,
        recompute_attention=schedule.recompute_attention,
        recompute_mlp=schedule.recompute_mlp,
        offload=schedule.offload,
        chunk=schedule.chunk,
        logit_bytes=schedule.logit_bytes or LOGIT_BYTES,
        forwards=forwards,
    )


def fast_memory(shape: FastShape, choice: Choice, *, capacity: int, available: int, exact: bool) -> Memory:
    """The components of a step's peak.

    Args:
        shape: of the model.
        choice: the largest micro-batch.
        capacity: the device's own memory.
        available: free there now.
        exact: the parameters were counted, not guessed.
    """
    cpu = shape.attention == "reference"
    peak = fast_peak(shape, choice)
    components = {
        **shape.static,
        "activations": peak.kept,
        "passing": 0 if peak.loss else peak.passing,
        "loss": peak.passing if peak.loss else 0,
        "runtime": PROCESS + peak.host if cpu else CUDA_CONTEXT + CUDA_WORKSPACE,
    }
    return Memory(
        where="ram" if cpu else "gpu",
        components=components,
        peak=sum(components.values()),
        capacity=capacity,
        available=available,
        exact_parameters=exact,
    )
