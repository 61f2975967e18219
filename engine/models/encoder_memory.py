"""What an encoder on the fast path keeps for its backward pass. Light: no torch.

Texts lie end to end there, so that a batch has the tokens of its texts, not its longest text's a row; and a
half of a layer keeps its own tensors alone (:mod:`whet.engine.models.fast_path.encoders.half`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..recipe import AdapterSection
from .families import family_of

if TYPE_CHECKING:
    from ..data.inspection import DataReport
    from ..resolve import Resolved
    from .facts import ModelFacts

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
METHODS = ("embedding", "classification", "token_classification", "reranker")
RANK_STEP = 8
"""Ranks of stacked layers are padded to multiples of this."""
DEVIATIONS = 4.0
"""Standard deviations of a batch's tokens above their mean that are planned for."""
HALVES = 2


def on_fast_path(facts: ModelFacts, adapter: AdapterSection, resolved: Resolved) -> bool:
    """Whether the encoders' fast path has the model with this adapter."""
    family = family_of(facts.model_type)
    return (
        family.encoder is not None
        and family.encoder.slow is None
        and resolved.method in METHODS
        and adapter.kind in ("lora", "rslora")
        and adapter.bias == "none"
        and resolved.base_precision in ("nf4", "int8", resolved.compute_dtype)
    )


def batch_tokens(resolved: Resolved, report: DataReport) -> int:
    """Tokens of a batch's texts that are hardly ever exceeded.

    Lengths between 0 and the longest with this mean vary most where all are one or the other, so that their
    variance is at most mean x (longest - mean).
    """
    texts = resolved.batch_size * resolved.texts_per_row
    seen = max(1, report.train.rows * resolved.texts_per_row)
    mean = min(float(resolved.longest), report.train.tokens / seen)
    spread = (texts * mean * (resolved.longest - mean)) ** 0.5
    return min(texts * resolved.longest, round(texts * mean + DEVIATIONS * spread))


def fast_encoder_bytes(
    facts: ModelFacts, adapter: AdapterSection, resolved: Resolved, report: DataReport
) -> int:
    """Bytes of one batch's activations at the worst moment.

    Notation: h hidden, f intermediate, g 2 for a gated MLP, r ranks of a product's adapters, w bytes of the
    compute type.

    - attention half: the normed input with room for t, the sum that was normed, q, k and v, the output with
      room, one fp32 log-sum a head: w(6h + 2r) + 4 heads.
    - MLP half: the normed input with room, the sum, what the first product gives, t of the last one:
      w(2h + gf + 2r).
    - two fp32 statistics a norm; with checkpointing a half keeps the sum and t of its last product.
    - in the backward pass of a half, gradients of its width pass beside: w(f + 4h).
    - a head reads hidden states that are padded again: two copies of batch x longest.
    """
    layout = family_of(facts.model_type).encoder
    assert layout is not None
    width, hidden = BYTES[resolved.compute_dtype], facts.hidden_size
    inner = (2 if layout.gated else 1) * facts.mlp_width
    rank = -(-adapter.rank // RANK_STEP) * RANK_STEP
    stacked = -(-adapter.rank * len(layout.qkv) // RANK_STEP) * RANK_STEP
    statistics = HALVES * 8
    attention = width * (6 * hidden + stacked + rank) + 4 * facts.heads
    mlp = width * (HALVES * hidden + inner + HALVES * rank)
    layer = attention + mlp + statistics
    if resolved.gradient_checkpointing:
        a_token = facts.layers * (width * HALVES * (hidden + rank) + statistics) + layer
    else:
        a_token = facts.layers * layer
    passing = width * (facts.mlp_width + 4 * hidden)
    tokens = batch_tokens(resolved, report)
    padded = 0 if resolved.method == "embedding" else 2 * width * hidden * resolved.tokens_per_micro_batch
    return tokens * (a_token + passing) + padded
