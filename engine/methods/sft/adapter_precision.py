"""Adapters stay in the type that they were made in, whatever TRL's constructor does to them."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """What trains of a transformers or PEFT model, by name."""
    if not isinstance(model, PreTrainedModel | PeftModel):
        return {}
    return {name: param.data for name, param in model.named_parameters() if param.requires_grad}


def restore_precision(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """TRL's constructor rounds the adapters of a quantised base to bf16; give them their values back."""
    for name, param in model.named_parameters():
        before = weights.get(name)
        if before is not None and param.dtype != before.dtype:
            param.data = before.to(param.device)
