"""Encoders: BERT, RoBERTa and XLM-R, ModernBERT, EmbeddingGemma, and decoders as they embed. Light.

llama.cpp approximates BERT's GELU by tanh, from a table in float16; measured in docs/embedding_export.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..descriptor import Architecture, Spelling, Tensor, module
from ..keys import whole_context, write_rope
from ..model_config import ModelConfig
from ..transforms import Weights
from . import gemma
from .llama import LLAMA, MISTRAL
from .pooled import (
    BARE_NAMES,
    DENSE,
    as_embedding,
    bidirectional,
    dense_otherwise,
    framed,
    no_dense,
    pools_otherwise,
    write_dense,
    write_pooling,
)
from .qwen import QWEN2, QWEN3

if TYPE_CHECKING:
    from gguf import GGUFWriter

GELU = ("gelu", *gemma.TANH_GELU)
NOT_COMPUTED = {
    "mpnet": "llama.cpp has no architecture that adds MPNet's learned bias of relative positions to "
    "attention (relative_attention_bias); without it the vectors would be others."
}
"""model_type -> why no GGUF can be written for it."""


def norm(source: str, target: str, *, bias: bool = True) -> tuple[Tensor, ...]:
    """A layer norm; its parameters are called gamma and beta in checkpoints of BERT's first years."""
    weight = Tensor(f"{target}.weight", (Spelling(f"{source}.weight"), Spelling(f"{source}.gamma")))
    if not bias:
        return (weight,)
    return weight, Tensor(f"{target}.bias", (Spelling(f"{source}.bias"), Spelling(f"{source}.beta")))


def encoder_sizes(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_block_count(config.layers)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config.heads)


def bert_keys(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_token_type_count(config["type_vocab_size"])


def unlike_bert(config: ModelConfig) -> str | None:
    """Switches of the class that llama.cpp does not compute."""
    if config.get("position_embedding_type", "absolute") != "absolute":
        return f"llama.cpp adds BERT's positions to the words, not {config['position_embedding_type']!r}."
    if config.get("is_decoder"):
        return "llama.cpp computes BERT as an encoder only (is_decoder)."
    return None


LAYER, BLOCK = "encoder.layer.{layer}", "blk.{layer}"


def bert_tensors(positions: Spelling) -> tuple[Tensor, ...]:
    """``positions``: where the table of positions comes from."""
    return (
        module("embeddings.word_embeddings", "token_embd")
        + module("embeddings.token_type_embeddings", "token_types", exact=True)
        + (Tensor("position_embd.weight", (positions,), exact=True),)
        + norm("embeddings.LayerNorm", "token_embd_norm")
        + module(f"{LAYER}.attention.self.query", f"{BLOCK}.attn_q", bias=True)
        + module(f"{LAYER}.attention.self.key", f"{BLOCK}.attn_k", bias=True)
        + module(f"{LAYER}.attention.self.value", f"{BLOCK}.attn_v", bias=True)
        + module(f"{LAYER}.attention.output.dense", f"{BLOCK}.attn_output", bias=True)
        + norm(f"{LAYER}.attention.output.LayerNorm", f"{BLOCK}.attn_output_norm")
        + module(f"{LAYER}.intermediate.dense", f"{BLOCK}.ffn_up", bias=True)
        + module(f"{LAYER}.output.dense", f"{BLOCK}.ffn_down", bias=True)
        + norm(f"{LAYER}.output.LayerNorm", f"{BLOCK}.layer_output_norm")
    )


POSITIONS = "embeddings.position_embeddings.weight"

BERT = Architecture(
    model_types=("bert",),
    name="bert",
    tensors=bert_tensors(Spelling(POSITIONS)),
    head="none",
    defaults={
        "layer_norm_eps": 1e-12,
        "type_vocab_size": 2,
        "max_position_embeddings": 512,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    },
    activations=GELU,
    ropes=(),
    refusals=(unlike_bert, pools_otherwise, no_dense),
    keys=(encoder_sizes, whole_context, bert_keys, bidirectional, write_pooling),
    aliases=(("bert.", ""), ("roberta.", "")),
    ignored=("*pooler.*", "cls.*", "lm_head.*", "classifier.*", "*.position_ids"),
    vocabulary=framed,
)


def unused_rows(config: ModelConfig) -> int:
    """RoBERTa counts positions from the padding's id up: rows before that are never read."""
    return int(config["pad_token_id"]) + 1


def without_unused(value: Weights, config: ModelConfig) -> Weights:
    return value[unused_rows(config) :]


def shorter_context(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_context_length(config.positions - unused_rows(config))


XLM_ROBERTA = replace(
    BERT,
    model_types=("xlm-roberta", "roberta", "camembert"),
    tensors=bert_tensors(Spelling(POSITIONS, without_unused)),
    defaults={**BERT.defaults, "pad_token_id": 1},
    keys=(encoder_sizes, shorter_context, bert_keys, bidirectional, write_pooling),
)


def modern_keys(writer: GGUFWriter, config: ModelConfig) -> None:
    """Epsilon, the window with the layers that have it, both rotary bases, the gate's activation."""
    writer.add_layer_norm_eps(config["norm_eps"])
    writer.add_sliding_window(config["local_attention"])
    writer.add_sliding_window_pattern(windowed_layers(config))
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope_base(config, "full_attention", "global_rope_theta", 160000.0))
    writer.add_rope_freq_base_swa(rope_base(config, "sliding_attention", "local_rope_theta", 10000.0))
    writer.add_string("modern-bert.hidden_activation", config.activation or "gelu")


def rope_base(config: ModelConfig, kind: str, old: str, default: float) -> float:
    """Of one kind of layer; ``old`` is its key before transformers 5."""
    rope = (config.get("rope_parameters") or {}).get(kind) or {}
    return float(rope.get("rope_theta") or config.get(old) or default)


def windowed_layers(config: ModelConfig) -> list[bool]:
    kinds = config.get("layer_types")
    if kinds is not None:
        return [kind == "sliding_attention" for kind in kinds]
    period = int(config["global_attn_every_n_layers"])
    return [bool(layer % period) for layer in range(config.layers)]


def unlike_modern_bert(config: ModelConfig) -> str | None:
    on = [key for key in ("attention_bias", "mlp_bias", "norm_bias") if config.get(key)]
    if on:
        return f"llama.cpp reads none of the biases that {' and '.join(on)} adds to ModernBERT."
    kinds = (config.get("rope_parameters") or {}).values()
    scaled = {one.get("rope_type", "default") for one in kinds if isinstance(one, dict)} - {"default"}
    return f"llama.cpp does not scale ModernBERT's rope ({', '.join(sorted(scaled))})." if scaled else None


MODERN_LAYER = "layers.{layer}"

MODERN_BERT = Architecture(
    model_types=("modernbert",),
    name="modern-bert",
    tensors=norm("embeddings.norm", "token_embd_norm", bias=False)
    + module("embeddings.tok_embeddings", "token_embd")
    # The first layer has no such norm; llama.cpp itself refuses a file without a later one.
    + (Tensor(f"{BLOCK}.attn_norm.weight", (Spelling(f"{MODERN_LAYER}.attn_norm.weight"),), required=False),)
    + module(f"{MODERN_LAYER}.attn.Wqkv", f"{BLOCK}.attn_qkv")
    + module(f"{MODERN_LAYER}.attn.Wo", f"{BLOCK}.attn_output")
    + norm(f"{MODERN_LAYER}.mlp_norm", f"{BLOCK}.ffn_norm", bias=False)
    + module(f"{MODERN_LAYER}.mlp.Wi", f"{BLOCK}.ffn_up")
    + module(f"{MODERN_LAYER}.mlp.Wo", f"{BLOCK}.ffn_down")
    + norm("final_norm", "output_norm", bias=False),
    head="none",
    defaults={
        "norm_eps": 1e-5,
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "max_position_embeddings": 8192,
        "hidden_activation": "gelu",
    },
    activations=("gelu", "silu"),
    ropes=(),
    refusals=(unlike_modern_bert, pools_otherwise, no_dense),
    keys=(encoder_sizes, whole_context, modern_keys, bidirectional, write_pooling),
    aliases=(("model.", ""),),
    ignored=("head.*", "decoder.*", "classifier.*", "*.inv_freq"),
    vocabulary=framed,
)

EMBEDDING_GEMMA = replace(
    gemma.GEMMA3,
    model_types=("gemma3_text",),
    name="gemma-embedding",
    tensors=gemma.GEMMA3.tensors + DENSE,
    applies=lambda config: bool(config.get("use_bidirectional_attention")),
    head="none",
    refusals=(
        gemma.NO_BIASES,
        gemma.scaled_otherwise(large_layers=0),
        gemma.windowed_rope_scaled,
        pools_otherwise,
        dense_otherwise,
    ),
    keys=(
        gemma.sizes,
        whole_context,
        write_rope,
        gemma.gemma3_attention,
        bidirectional,
        write_dense,
        write_pooling,
    ),
    aliases=BARE_NAMES,
    vocabulary=framed,
)

EMBEDDING_DECODERS = tuple(map(as_embedding, (QWEN3, QWEN2, MISTRAL, LLAMA)))
ENCODERS: tuple[Architecture, ...] = (BERT, XLM_ROBERTA, MODERN_BERT, EMBEDDING_GEMMA, *EMBEDDING_DECODERS)
"""Before the decoders in the list of families: some of them share a model_type."""
