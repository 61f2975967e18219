"""Mistral 7B and its kin: Llama's layers with an optional sliding window and no biases.

llama.cpp has no architecture of this name: the weights go out as ``llama``.
"""

from .descriptor import Family, FastLayout

FAMILY = Family(
    name="mistral", model_types=("mistral",), fast=FastLayout(window="all"), chat_template="mistral"
)
