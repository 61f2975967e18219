"""SmolLM3: Llama's layer, every fourth without a rotary embedding. SmolLM 1 and 2 are Llama's own class."""

from .descriptor import Family, FastLayout

FAMILY = Family(
    name="smollm3",
    model_types=("smollm3",),
    fast=FastLayout(window="by_layer_type", no_rope="no_rope_layers"),
    chat_template="chatml",
    attention_bias="config",
    mlp_bias=True,
    defaults={
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "no_rope_layer_interval": 4,
    },
)
