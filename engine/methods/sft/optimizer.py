"""The optimizer of a model on the fast path: AdamW over flat buffers, for torch's and bitsandbytes'."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from ...models.fast_path import causal_model
from ..flat_optimizer import FlatAdamW

FLAT_OPTIMIZERS = {"adamw_torch": 32, "adamw_torch_fused": 32, "adamw_bnb_8bit": 8, "adamw_8bit": 8}
"""transformers' names of the optimizers that the flat AdamW stands in for, and the bits of their moments."""


def flat_optimizer(trainer: Trainer, bits: int, transformer: Any = None) -> FlatAdamW:
    """As transformers builds its own: what decays and what does not in two groups, and an input embedding
    that trains with fp32 moments even beside 8-bit ones.

    Args:
        trainer: whose model trains.
        bits: of the moments.
        transformer: transformers' model inside the trainer's, where that is no such model itself.
    """
    args, model = trainer.args, trainer.model
    assert model is not None
    decayed = set(trainer.get_decay_parameter_names(model))
    trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    groups = [
        {"params": [param for name, param in trained if (name in decayed) == decays], "weight_decay": decay}
        for decays, decay in ((True, args.weight_decay), (False, 0.0))
    ]
    return FlatAdamW(
        [group for group in groups if group["params"]],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        bits=bits,
        fp32_moments=list(causal_model(transformer or model).get_input_embeddings().parameters()),
    )
