"""Llama 2, 3, 3.1, 3.2 (text) and the many models that use its class."""

from .descriptor import Family

FAMILY = Family(
    name="llama",
    model_types=("llama",),
    chat_template="llama-3.1",
    attention_bias="config",
    mlp_bias=True,
)
