"""Mistral 7B and its kin: Llama's layers with an optional sliding window and no biases.

llama.cpp has no architecture of this name: the weights go out as ``llama``.
"""

from .descriptor import Family

FAMILY = Family(name="mistral", model_types=("mistral",), chat_template="mistral")
