"""A learning rate of their own for the input embedding and the output head where these train whole."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from ..errors import WhetError


def trained_ends(causal: Any) -> list[torch.nn.Parameter]:
    """What trains of a causal model's input embedding and output head; tied ones once.

    Args:
        causal: transformers' model, without PEFT's wrapper.
    """
    owners = [causal.get_input_embeddings(), causal.get_output_embeddings()]
    trained = (p for owner in owners if owner is not None for p in owner.parameters() if p.requires_grad)
    return list({id(p): p for p in trained}.values())


def split_embedding_groups(optimizer: Optimizer, causal: Any, rate: float) -> None:
    """Move embedding and head to parameter groups with learning rate ``rate``, behind the others.

    A schedule then multiplies both rates by the same factor.

    Args:
        optimizer: as it was built, before a schedule or a saved state is put on it.
        causal: transformers' model, without PEFT's wrapper.
        rate: their learning rate at its peak.

    Raises:
        WhetError: ``train.no_embeddings`` when neither trains.
    """
    ends = {id(parameter) for parameter in trained_ends(causal)}
    if not ends:
        raise WhetError(
            "train.no_embeddings",
            f"embedding_learning_rate={rate}, but neither embed_tokens nor lm_head trains.",
            'Add "embed_tokens" and "lm_head" to target_modules or modules_to_save (in a recipe: '
            "adapter.train_embeddings=true), or leave the rate out.",
        )
    for group in list(optimizer.param_groups):
        chosen = [p for p in group["params"] if id(p) in ends]
        group["params"] = [p for p in group["params"] if id(p) not in ends]
        if chosen:
            optimizer.add_param_group({**group, "params": chosen, "lr": rate})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
