"""Encoders on the fast path in tests: adapters that are not zero, padded rows, pairs of texts to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

LENGTHS = (19, 5, 40, 1, 80)
TARGETS = ("query", "key", "value", "dense", "Wqkv", "Wo", "Wi")


def adapted(folder: Path, *, dtype: torch.dtype = torch.float32, dropout: float = 0.0, **config: Any) -> Any:
    """The encoder with a random adapter, the same on every call; ``config`` changes its configuration."""
    from transformers import AutoConfig, AutoModel

    settings = AutoConfig.from_pretrained(folder)
    for name, value in config.items():
        setattr(settings, name, value)
    encoder = AutoModel.from_pretrained(folder, config=settings, dtype=dtype)
    leaves = {path.rsplit(".", 1)[-1] for path, _ in encoder.named_modules()}
    torch.manual_seed(7)
    lora = LoraConfig(
        target_modules=sorted(leaves & set(TARGETS)),
        r=4,
        lora_alpha=6,
        lora_dropout=dropout,
        task_type="FEATURE_EXTRACTION",
    )
    model = get_peft_model(encoder, lora)
    generator = torch.Generator().manual_seed(1)
    for path, parameter in model.named_parameters():
        if "lora_" in path:
            parameter.data = parameter.data.to(dtype)
        if "lora_B" in path:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        if ".pooler." in path:  # nothing here reads it
            parameter.requires_grad = False
    return model.train()


def padded_rows(pad: int, lengths: tuple[int, ...] = LENGTHS) -> dict[str, torch.Tensor]:
    """Token ids of rows of these lengths, padded behind."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.full((len(lengths), max(lengths)), pad)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(10, 250, (length,), generator=generator)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def weighed(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Hidden states, zeros for padding, and the adapter's gradients of a weighted sum of them."""
    model.zero_grad()
    hidden = model(**inputs).last_hidden_state * inputs["attention_mask"][..., None]
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3))
    (hidden * weights.to(hidden)).sum().backward()
    return hidden.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def pairs(count: int, seed: int = 3) -> list[dict[str, str]]:
    """Anchors and positives of random words, some of them the same text twice."""
    random = np.random.default_rng(seed)

    def text(mean: int) -> str:
        return " ".join(f"w{word}" for word in random.integers(0, 300, random.integers(2, 2 * mean)))

    rows = [{"anchor": text(7), "positive": text(5)} for _ in range(count)]
    rows[count // 2]["positive"] = rows[0]["positive"]
    return rows
