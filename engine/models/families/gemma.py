"""Gemma 1 (and CodeGemma): RMSNorm weights count from 1, GeGLU, a scaled and tied embedding.

Early files say ``hidden_act: gelu`` and mean its tanh form.
"""

from .descriptor import EVERYTHING, NO_FP16, Family, FastLayout

FAMILY = Family(
    name="gemma",
    model_types=("gemma",),
    fast=FastLayout(activation="geglu_tanh", tanh_always=True, norm_offset=1.0, embed_scale=True),
    chat_template="gemma-3",
    capabilities=EVERYTHING | NO_FP16,
    attention_bias="config",
    defaults={"head_dim": 256, "tie_word_embeddings": True},
)
