"""Gemma 3: Gemma 2's layer with norms over q and k heads instead of the attention's softcap, and two rotary
tables: five layers with a window turn at 10,000, the sixth sees everything and turns at 1,000,000.

transformers reads ``attn_logit_softcapping`` for this class and never applies it; the final one it does.
The multimodal checkpoints (4B and up) load with their vision tower, text in ``model.language_model``.
"""

from dataclasses import replace

from .descriptor import EVERYTHING, NO_FP16, Experimental, Family, FastLayout, Unsupported

FAMILY = Family(
    name="gemma3",
    model_types=("gemma3_text",),
    fast=FastLayout(
        activation="geglu_tanh",
        activation_key="hidden_activation",
        norm_offset=1.0,
        embed_scale=True,
        mlp_norm="pre_feedforward_layernorm",
        post_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        qk_norm=("q_norm", "k_norm"),
        query_scale="query_pre_attn_scalar",
        final_softcap="final_logit_softcapping",
        window="by_layer_type",
        rope_by_layer_type=True,
    ),
    chat_template="gemma-3",
    capabilities=EVERYTHING | NO_FP16,
    attention_bias="config",
    layer_norms=4,
    qk_norm=True,
    defaults={
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
    },
)

_WITH_VISION = (
    "text only, with the vision tower in memory; adapters on q_proj, k_proj and v_proj reach it too"
)

MULTIMODAL = replace(
    FAMILY,
    name="gemma3-multimodal",
    model_types=("gemma3",),
    fast=Unsupported("a multimodal checkpoint: its text decoder is inside a model with a vision tower"),
    exact=False,
    capabilities={name: Experimental(_WITH_VISION) for name in EVERYTHING} | NO_FP16,
)
