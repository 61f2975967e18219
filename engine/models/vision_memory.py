"""What a step of a vision-language model takes beside its language model's layers: the image encoder, the
mask of padded rows, the answers' logits; from arithmetic alone. Light."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .facts import ModelFacts
from .families import family_of
from .image_tokens import VISION

if TYPE_CHECKING:
    from ..data.inspection import ImageCounts
    from ..resolve import Resolved

CHANNELS = 3
MULTIPLE = 8
"""Batches are padded to a multiple of so many tokens."""


def language_facts(facts: ModelFacts) -> ModelFacts:
    """The language model's linear layers alone: what a text token passes."""
    linear = [module for module in facts.parameters.linear if not VISION.search(module.pattern)]
    return facts.model_copy(update={"parameters": facts.parameters.model_copy(update={"linear": linear})})


def as_padded(resolved: Resolved) -> Resolved:
    """The same, with the length that the longest row has in a batch."""
    return resolved.model_copy(update={"longest": -(-resolved.longest // MULTIPLE) * MULTIPLE})


def mask_bytes(facts: ModelFacts, resolved: Resolved) -> int:
    """What attention keeps besides, because rows are padded and transformers gives SDPA a mask for that.

    SDPA's kernels with a mask have no grouped heads: keys and values are repeated for every query head. They
    add the mask to the scores, so each layer makes and keeps one in the compute type, a number a pair of
    tokens; the mask of bools that it is made from stands once. With recomputing one layer has all this.
    """
    if family_of(facts.model_type).eager_attention:
        return 0  # repeated there in any case
    width = 4 if resolved.compute_dtype == "fp32" else 2
    repeated = 2 * (facts.heads - facts.kv_heads) * facts.head_dim
    layers = 1 if resolved.gradient_checkpointing else facts.layers
    a_token = layers * width * (repeated + resolved.longest) + resolved.longest
    return resolved.tokens_per_micro_batch * a_token


def encoder_bytes(facts: ModelFacts, resolved: Resolved, images: ImageCounts | None) -> int:
    """What the images of one micro-batch take: pixels, and what the encoder keeps of them.

    Every row is counted with the most patches that a row has. A layer keeps, for each patch, two norms'
    inputs in fp32, queries, keys, values, the attention's output and both inputs of its linear layers, and
    three tensors of the MLP's width; in mixed precision each adapted layer's own copy of its input too.
    Frozen encoders keep nothing but the layer at work. In cross-attention each such layer of the language
    model keeps keys and values of all patches.

    Fitted on an H200 to LLaVA and Qwen2.5-VL shapes of 1.2 and 1.4 billion parameters, bf16 and nf4, with and
    without recomputing.
    """
    if images is None:
        return 0
    config = json.loads((facts.path / "config.json").read_text(encoding="utf-8"))
    tower: dict[str, Any] = config.get("vision_config") or {}
    width = 4 if resolved.compute_dtype == "fp32" else 2
    # Qwen2-VL's hidden_size is that of the language model.
    hidden = int(tower.get("embed_dim") or tower.get("hidden_size") or 1024)
    inner = int(tower.get("intermediate_size") or 4 * hidden)
    layers = int(tower.get("num_hidden_layers") or tower.get("depth") or 24)
    layers += int(tower.get("num_global_layers") or 0)
    patch = int(tower.get("patch_size") or 14)
    patches = resolved.batch_size * images.most_patches_in_a_row
    layer = 8 * hidden + width * (6 * hidden + 3 * inner)
    if resolved.encoder_trains and width < 4:
        layer += width * (5 * hidden + inner)
    if not resolved.encoder_trains:
        kept = layer
    elif resolved.gradient_checkpointing:
        kept = layers * width * hidden + 2 * layer
    else:
        kept = layers * layer
    crossing = len((config.get("text_config") or {}).get("cross_attention_layers") or [])
    kept += crossing * 2 * width * facts.kv_heads * facts.head_dim
    pixels = 4 * CHANNELS * patch * patch * int(tower.get("temporal_patch_size") or 1)
    return patches * (kept + pixels)


def answer_bytes(facts: ModelFacts, resolved: Resolved, images: ImageCounts | None) -> int:
    """The loss as its backward pass begins, in fp32: log-probabilities, their gradient, the logits' gradient.

    Every row has logits at each place whose next token is supervised in any row of the batch: no more places
    than lie behind the shortest prompt, and no more than the rows' answers have together.
    """
    places = resolved.longest
    if images is not None:
        answers = resolved.batch_size * images.most_supervised_in_a_row
        places = min(places - images.fewest_before_answers, answers)
    return resolved.batch_size * places * facts.embedding_rows * 3 * 4
