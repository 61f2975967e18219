"""What a tensor goes through between checkpoint and GGUF. Light: methods of tensors only."""

from __future__ import annotations

from typing import Any

from .model_config import ModelConfig

Weights = Any
"""A ``torch.Tensor``; not named so, because nothing here may import torch."""


def interleave_q(value: Weights, config: ModelConfig) -> Weights:
    return interleave_pairs(value, config.heads)


def interleave_k(value: Weights, config: ModelConfig) -> Weights:
    return interleave_pairs(value, config.kv_heads)


def interleave_pairs(value: Weights, heads: int) -> Weights:
    """Reorder the rows of each head from (x_0 .. x_half, y_0 .. y_half) to (x_0, y_0, x_1, y_1, ..).

    transformers rotates row i with row i + half; llama.cpp's rope rotates row 2i with row 2i + 1 for some
    architectures.

    Args:
        value: [heads * head_dim, ...], a weight, a bias, or the B matrix of a LoRA.
    """
    split = value.reshape(heads, 2, -1, *value.shape[1:])
    return split.transpose(1, 2).reshape(value.shape)


def plus_one(value: Weights, config: ModelConfig) -> Weights:
    """Gemma's norms multiply by 1 + weight, llama.cpp's by the weight."""
    return value.float() + 1


def first_half(value: Weights, config: ModelConfig) -> Weights:
    """Gate out of experts' fused gate and up: [experts, 2 * width, hidden]."""
    return value.chunk(2, dim=1)[0]


def second_half(value: Weights, config: ModelConfig) -> Weights:
    """Up out of the same."""
    return value.chunk(2, dim=1)[1]
