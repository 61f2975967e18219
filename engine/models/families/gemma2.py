"""Gemma 2: Gemma's layer with norms after attention and MLP, softcaps, every other layer with a window.

The attention's softcap has no fused kernel in transformers, so the plain path holds all scores.
"""

from .descriptor import EVERYTHING, NO_FP16, Family, FastLayout

FAMILY = Family(
    name="gemma2",
    model_types=("gemma2",),
    fast=FastLayout(
        activation="geglu_tanh",
        activation_key="hidden_activation",
        norm_offset=1.0,
        embed_scale=True,
        mlp_norm="pre_feedforward_layernorm",
        post_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        query_scale="query_pre_attn_scalar",
        attention_softcap="attn_logit_softcapping",
        final_softcap="final_logit_softcapping",
        window="by_layer_type",
    ),
    chat_template="gemma-3",
    capabilities=EVERYTHING | NO_FP16,
    attention_bias="config",
    layer_norms=4,
    eager_attention=True,
    defaults={
        "head_dim": 256,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
        "sliding_window_pattern": 2,
    },
)
