"""Seconds of a step on the fast path: arithmetic over its rates, traffic over the copy bandwidth.

    step = max(device, host) + what nothing runs beside
    device = products + attention + elementwise + head + offload that is not hidden

A product of M rows takes flops / ceiling + bytes / bandwidth, which gives small shapes their lower rates.
Elementwise kernels reach :data:`ELEMENTWISE_SHARE` of the copy bandwidth. Legend as in :mod:`.fast_memory`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..calibration import Ceilings
from ..data.inspection import SplitReport
from .fast_memory import Choice, replayed
from .fast_shape import FastShape, Product

ELEMENTWISE_SHARE = 0.8
FP32_SLOWER = 10.0
"""Products in fp32 without tensor cores, against 16 bits."""
FORWARD_OF_ATTENTION = 1 / 3.5
"""Attention's backward pass computes five products where the forward pass computes two."""
REPLAYED = 0.5
"""Share of launch-bound micro-batches of uneven rows whose shape was captured before."""
OWN_ATTENTION = 0.6
"""Our Triton attention's rate against the libraries'."""


@dataclass(frozen=True)
class Rows:
    """The rows of an optimizer step.

    Args:
        per_step: rows, or packed sequences.
        longest: tokens of the longest document.
        mean: tokens of a row.
        seen: length of the document that a token is in, averaged over tokens (E[n^2] / E[n]).
        supervised: share of tokens with a label.
        equal: all have the same length.
    """

    per_step: int
    longest: int
    mean: float
    seen: float
    supervised: float = 1.0
    equal: bool = False

    @classmethod
    def of_lengths(cls, lengths: Sequence[int], per_step: int, supervised: float = 1.0) -> Rows:
        """Rows of exactly known lengths, at least one."""
        total = sum(lengths)
        return cls(
            per_step=per_step,
            longest=max(lengths),
            mean=total / len(lengths),
            seen=sum(length * length for length in lengths) / max(1, total),
            supervised=supervised,
            equal=min(lengths) == max(lengths),
        )

    @property
    def most(self) -> int:
        """Tokens of a step at most."""
        return self.per_step * self.longest

    @property
    def tokens(self) -> float:
        """Tokens of a step, expected."""
        return self.per_step * self.mean

    def micro_batches(self, budget: int) -> float:
        """Expected of a step: rows are taken in order, so half a row's room is lost at each end."""
        if budget >= self.most:
            return 1.0
        used = min(budget, max(self.mean, budget - self.mean / 2))
        return min(float(self.per_step), max(1.0, self.tokens / used))


def rows_of(split: SplitReport, per_step: int, longest: int, *, packed: bool = False, texts: int = 1) -> Rows:
    """Rows as the data report saw them.

    Args:
        split: of the training rows.
        per_step: rows, or packed sequences, of an optimizer step.
        longest: tokens of the longest sequence.
        packed: rows are packed into sequences of ``longest`` tokens.
        texts: of a row; each then counts as a row.
    """
    document, per_step = split.tokens / max(1, split.token_rows * texts), per_step * texts
    lengths = split.length
    cut = [min(length, longest) for length in (lengths.p50, lengths.p95, lengths.p99, lengths.max)]
    equal = cut[0] == cut[-1] > 0
    return Rows(
        per_step=per_step,
        longest=longest,
        mean=float(longest) if packed else min(document, longest) or 1.0,
        seen=float(cut[-1]) if equal else _seen(document, *cut),
        supervised=min(1.0, split.supervised_tokens / max(1, split.tokens)),
        equal=equal and not packed,
    )


def _seen(mean: float, p50: float, p95: float, p99: float, most: float) -> float:
    """E[n^2] / E[n]: the second moment of lengths whose quantiles are joined by straight lines."""
    points = [(0.0, p50 / 4), (0.5, p50), (0.95, p95), (0.99, p99), (1.0, most)]
    second = sum((right - left) * (a * a + a * b + b * b) / 3 for (left, a), (right, b) in pairwise(points))
    return min(max(second / max(mean, 1.0), mean, 1.0), max(most, 1.0))


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by what takes them; ``host`` runs beside the rest, ``fixed`` does not."""

    products: float
    attention: float
    elementwise: float
    head: float
    offload: float
    host: float
    fixed: float

    @property
    def device(self) -> float:
        return self.products + self.attention + self.elementwise + self.head + self.offload

    @property
    def total(self) -> float:
        return max(self.device, self.host) + self.fixed


def step_time(shape: FastShape, rows: Rows, choice: Choice, ceilings: Ceilings) -> StepTime:
    """Expected time of an optimizer step.

    Args:
        shape: of the model.
        rows: of a step.
        choice: its ``tokens`` are the budget of a micro-batch; micro-batches are as full as rows make them.
        ceilings: of the GPU.
    """
    batches = rows.micro_batches(choice.tokens)
    tokens = rows.tokens / batches
    mlp_again, attention_again = choice.recompute_mlp, choice.recompute_attention
    layers = shape.layers
    parts = 1 if choice.chunk is None else max(1, math.ceil(tokens / choice.chunk))
    clock = _Clock(shape, ceilings)
    attention_half = clock.products(tokens, shape.qkv) + clock.products(tokens, shape.out)
    mlp_half = parts * (
        clock.products(tokens / parts, shape.gate_up) + clock.products(tokens / parts, shape.down)
    )
    products = layers * (attention_half + mlp_half)
    products += attention_again * clock.product(tokens, shape.qkv)
    products += mlp_again * parts * clock.product(tokens / parts, shape.gate_up)
    attended_again = max(0, attention_again - choice.offload)  # where inputs wait, attention's results do too
    attention = clock.attention(tokens, rows) * (1 + FORWARD_OF_ATTENTION * attended_again / layers)
    a_token = layers * (_forward_bytes(shape) + _backward_bytes(shape))
    a_token += mlp_again * shape.w * shape.width + attention_again * shape.w * (shape.width + 2 * shape.q)
    elementwise = tokens * a_token / (ELEMENTWISE_SHARE * ceilings.copy_rate)
    head = clock.head(tokens * rows.supervised)
    forwards = choice.forwards or 0
    if choice.forwards is not None:
        products += forwards * layers * (attention_half + mlp_half) / 2
        attention += forwards * clock.attention(tokens, rows) * FORWARD_OF_ATTENTION
        read = tokens * layers * _forward_bytes(shape)
        elementwise += forwards * read / (ELEMENTWISE_SHARE * ceilings.copy_rate)
        # Where the head trains too, such a loss makes the logits again for its backward pass.
        head *= 4 / 3 + forwards / 3 if shape.head_trains else 1 + forwards / 2
    compute = products + attention + elementwise
    offload = _exposed(shape, choice, tokens, compute / layers, ceilings)
    again = (mlp_again + attention_again) / (2 * layers)
    launching = layers * ceilings.layer_host * (1 + again / 4) * (1 + (parts - 1) / 2)
    launching *= 1 + forwards / 3
    if replayed(shape, choice, tokens):
        launching *= 0.0 if rows.equal else 1 - REPLAYED
    return StepTime(
        products=batches * products,
        attention=batches * attention,
        elementwise=batches * elementwise,
        head=batches * head,
        offload=batches * offload,
        host=batches * launching,
        fixed=ceilings.step_host,
    )


@dataclass(frozen=True)
class _Clock:
    """Seconds of the large operations of one micro-batch."""

    shape: FastShape
    ceilings: Ceilings

    def product(self, tokens: float, one: Product) -> float:
        """One product with a projection's weights, once more expanded where they are quantised."""
        shape, ceilings = self.shape, self.ceilings
        wide = one.inputs + one.rank
        rate = ceilings.matmul / (FP32_SLOWER if shape.w == 4 else 1)
        bytes_ = shape.w * (tokens * (wide + one.outputs) + wide * one.outputs)
        if shape.fp8 and ceilings.fp8 is not None:
            rate = ceilings.fp8
            bytes_ += 3 * tokens * one.inputs  # read in 16 bits, written in 8
        if shape.expands:
            bytes_ += one.parameters * (
                (1 if shape.fp8 else shape.w) + (0.5 if shape.base_precision == "nf4" else 1)
            )
        return 2 * tokens * wide * one.outputs / rate + bytes_ / ceilings.copy_rate

    def products(self, tokens: float, one: Product) -> float:
        """Forward, and the input's gradient."""
        return 2 * self.product(tokens, one)

    def attention(self, tokens: float, rows: Rows) -> float:
        """Forward and backward of all layers."""
        shape, ceilings = self.shape, self.ceilings
        rate, ramp = ceilings.attention, ceilings.attention_ramp
        if rows.equal:
            rate, ramp = ceilings.attention_equal, ceilings.attention_equal_ramp
        if shape.attention != "library":
            rate = OWN_ATTENTION * ceilings.attention
        if shape.w == 4:
            rate /= FP32_SLOWER
        seconds = 0.0
        for window in shape.windows:
            reach = rows.seen / 2
            if window is not None and window < rows.seen:
                reach = window * (1 - window / (2 * rows.seen))
            flops = tokens * 4 * shape.q * reach / FORWARD_OF_ATTENTION
            seconds += flops * (1 + ramp / max(1.0, 2 * reach)) / rate
        return seconds

    def head(self, rows: float) -> float:
        """Logits and the hidden states' gradient: two products, and the softmax over what they share."""
        shape, ceilings = self.shape, self.ceilings
        rate = ceilings.matmul / (FP32_SLOWER if shape.w == 4 else 1)
        products = 3 if shape.head_trains else 2
        logits = rows * shape.vocabulary
        seconds = (
            products * 2 * logits * shape.width / rate + products * shape.w * logits / ceilings.copy_rate
        )
        return seconds + 3 * shape.w * logits / (ELEMENTWISE_SHARE * ceilings.copy_rate)


def _lora_inputs(shape: FastShape) -> int:
    return sum(one.inputs for one in shape.products if one.rank)


def _forward_bytes(shape: FastShape) -> int:
    """A token and layer: both norms with their sum, rotation, gated unit, t, the output's update apart."""
    w, width = shape.w, shape.width
    turned = 2 * w * (shape.qkv.outputs if shape.qk_norm else shape.q + shape.k)
    apart = 2 * w * width if shape.out.rank else 0
    posts = 4 * w * width if shape.post_norms else 0
    return 8 * w * width + turned + 3 * w * shape.mlp + w * _lora_inputs(shape) + apart + posts


def _backward_bytes(shape: FastShape) -> int:
    """Norms again and backward, rotation back, gated unit, dx's update and the factors' gradients."""
    w, width = shape.w, shape.width
    turned = w * shape.qkv.outputs * (5 if shape.qk_norm else 2)
    factors = sum(w * (3 * one.inputs + one.outputs) for one in shape.products if one.rank)
    apart = w * width if shape.out.rank else 0
    posts = 12 * w * width if shape.post_norms else 0
    return 12 * w * width + turned + 6 * w * shape.mlp + factors + apart + posts


def _exposed(shape: FastShape, choice: Choice, tokens: float, a_layer: float, ceilings: Ceilings) -> float:
    """What copying an offloaded layer's inputs takes beyond the layer's own computation, both ways."""
    both = min(choice.offload, choice.recompute_attention) / max(1, choice.offload)
    moved = tokens * (2 * shape.w * shape.width + both * (shape.w * shape.q + 4 * shape.heads))
    copying = moved / ceilings.pcie
    forward, backward = a_layer / 3, 2 * a_layer / 3
    waits = max(0.0, copying - forward) + max(0.0, copying - backward)
    return choice.offload * (waits + 2 * moved / ceilings.copy_rate)
