"""What an encoder on the fast path keeps for its backward pass. Light: no torch.

Texts lie end to end there, so that a batch has the tokens of its texts, not its longest text's a row; and a
half of a layer keeps its own tensors alone (:mod:`whet.engine.models.fast_path.encoders.half`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..methods.filling import TOKENS, coarser
from ..recipe import AdapterSection
from .families import family_of

if TYPE_CHECKING:
    from ..data.inspection import DataReport, Lengths
    from ..resolve import Resolved
    from .facts import ModelFacts

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
METHODS = ("embedding", "classification", "token_classification", "reranker")
RANK_STEP = 8
"""Ranks of stacked layers are padded to multiples of this."""
DEVIATIONS = 4.0
"""Standard deviations of a batch's tokens above their mean that are planned for."""
HALVES = 2
CONTRAST_CHUNK = 256 * 2**20
"""Bytes of gradients that the contrastive loss holds at once."""


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


def packs_batches(resolved: Resolved, report: DataReport) -> bool:
    """Whether a head's batches are packed before they are read (an embedding's always are): not where fp16
    scales the losses, nor where a loss makes further pairs of the batch's rows."""
    if resolved.method == "embedding":
        return True
    return resolved.compute_dtype != "fp16" and resolved.texts_per_row == report.texts_per_row


def replays(facts: ModelFacts, adapter: AdapterSection, resolved: Resolved, report: DataReport) -> bool:
    """Whether steps are CUDA graphs: an adapter's own dropout draws its seeds on the host."""
    on_gpu = resolved.device == "cuda" and adapter.dropout == 0
    return on_gpu and on_fast_path(facts, adapter, resolved) and packs_batches(resolved, report)


def batch_tokens(resolved: Resolved, report: DataReport) -> int:
    """Tokens of a batch's texts that are hardly ever exceeded; on a GPU with what fills them up."""
    texts = resolved.batch_size * resolved.texts_per_row
    seen = max(1, report.train.rows * resolved.texts_per_row)
    mean = min(float(resolved.longest), report.train.tokens / seen)
    spread = (texts * _variance(report.train.length, mean, resolved.longest)) ** 0.5
    tokens = min(texts * resolved.longest, round(texts * mean + DEVIATIONS * spread))
    if resolved.device != "cuda" or not packs_batches(resolved, report):
        return tokens
    multiple = TOKENS if resolved.method == "embedding" else coarser(TOKENS, tokens)
    return -(-tokens // multiple) * multiple


def _variance(lengths: Lengths, mean: float, longest: int) -> float:
    """Of a text's tokens, their quantiles joined by straight lines.

    The shortest length is not known; it is what gives the texts their mean. Lengths between 0 and the longest
    vary most where all are one or the other: mean x (longest - mean). That is assumed where the lower half
    would have to be longer than the median to give the mean: lengths jump between quantiles then.
    """
    p50, p95, p99, most = (
        float(min(length, longest)) for length in (lengths.p50, lengths.p95, lengths.p99, lengths.max)
    )
    upper = ((0.45, p50, p95), (0.04, p95, p99), (0.01, p99, most))
    above = sum(share * (low + high) / 2 for share, low, high in upper)
    shortest, most_varied = 4 * (mean - above) - p50, mean * (longest - mean)
    if shortest > p50 + 1e-6:
        return most_varied
    pieces = ((0.5, max(0.0, shortest), p50), *upper)
    first = sum(share * (low + high) / 2 for share, low, high in pieces)
    second = sum(share * (low * low + low * high + high * high) / 3 for share, low, high in pieces)
    return max(0.0, min(second - first * first, most_varied))


def head_parameters(facts: ModelFacts, method: str) -> int:
    """Of what stands on an encoder and trains whole: a dense layer, where the answer is of the whole text.
    The rows of the answers themselves are few."""
    if family_of(facts.model_type).encoder is None or method not in ("classification", "reranker"):
        return 0
    return facts.hidden_size * (facts.hidden_size + 1)


def stacked_bytes(facts: ModelFacts, adapter: AdapterSection, resolved: Resolved) -> int:
    """The adapter once more in the compute type, stacked and scaled as products want it."""
    layout = family_of(facts.model_type).encoder
    assert layout is not None
    hidden, inner = facts.hidden_size, (2 if layout.gated else 1) * facts.mlp_width
    one, stacked = _ranks(adapter, len(layout.qkv))
    numbers = stacked * 4 * hidden + one * (2 * hidden + (hidden + inner) + (facts.mlp_width + hidden))
    return BYTES[resolved.compute_dtype] * facts.layers * numbers


def _ranks(adapter: AdapterSection, readers: int) -> tuple[int, int]:
    """Of one layer's adapter, and of those of all layers that read the attention's input."""
    one, all_of_them = (-(-adapter.rank * count // RANK_STEP) * RANK_STEP for count in (1, readers))
    return one, all_of_them


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
    - before that, in its place, what the contrastive loss holds (:func:`contrast_bytes`), mostly less.
    - a head whose batches are not packed reads hidden states that are padded again: two copies of
      batch x longest.
    """
    layout = family_of(facts.model_type).encoder
    assert layout is not None
    width, hidden = BYTES[resolved.compute_dtype], facts.hidden_size
    inner = (2 if layout.gated else 1) * facts.mlp_width
    rank, stacked = _ranks(adapter, len(layout.qkv))
    statistics = HALVES * 8
    attention = width * (6 * hidden + stacked + rank) + 4 * facts.heads
    mlp = width * (HALVES * hidden + inner + HALVES * rank)
    layer = attention + mlp + statistics
    if resolved.gradient_checkpointing:
        a_token = facts.layers * (width * HALVES * (hidden + rank) + statistics) + layer
    else:
        a_token = facts.layers * layer
    tokens = batch_tokens(resolved, report)
    passing = max(tokens * width * (facts.mlp_width + 4 * hidden), contrast_bytes(facts, resolved))
    again = 0 if packs_batches(resolved, report) else 2 * resolved.tokens_per_micro_batch
    return tokens * a_token + passing + again * width * hidden


def contrast_bytes(facts: ModelFacts, resolved: Resolved) -> int:
    """What the contrastive loss of an embedding model holds: a chunk of similarities' gradients, four bytes
    each, and of every text's fp32 embedding its gradient and two bf16 matrices whose sum it is.

    Other losses hold less.
    """
    if resolved.method != "embedding":
        return 0
    anchors, texts = resolved.batch_size, resolved.batch_size * resolved.texts_per_row
    chunk = min(CONTRAST_CHUNK, 4 * anchors * (texts - anchors))
    return chunk + (4 + 2 * 2) * facts.hidden_size * texts
