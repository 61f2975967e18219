"""Phi-3, Phi-3.5 and Phi-4 (mini included): Llama's layer with q, k, v in one matrix and gate, up in another.

Phi-4-mini rotates three quarters of each head. The long-context variants choose their rotary frequencies by
the longest sequence of the batch.
"""

from .descriptor import FUSED_NAMES, Family, FastLayout

FAMILY = Family(
    name="phi3",
    model_types=("phi3",),
    fast=FastLayout(fused_qkv="qkv_proj", fused_gate_up="gate_up_proj", window="all"),
    target_modules=FUSED_NAMES,
    chat_template="phi-4",
    attention="fused",
    fused_mlp=True,
)
