"""Models on the fast path in tests: random adapters, rows of several lengths, the loss of packed rows."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from whet.engine.models.fast_path import pack_rows, program_of

LENGTHS = (19, 5, 11, 1)
TARGETS = {
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "qkv_proj",
    "gate_up_proj",
}


def with_random_adapter(model: Any, **options: Any) -> Any:
    """LoRA whose B is not zero, the same on models of the same shape."""
    leaves = {
        path.rsplit(".", 1)[-1] for path, part in model.named_modules() if isinstance(part, torch.nn.Linear)
    }
    settings = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.0} | options
    torch.manual_seed(7)
    adapted = get_peft_model(model, LoraConfig(target_modules=sorted(leaves & TARGETS), **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, param in adapted.named_parameters():
            if "lora_B" in path:
                param.copy_(0.1 * torch.randn(param.shape, generator=generator))
    return adapted.train()


def random_rows(vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in LENGTHS]


def plain_loss(model: Any, documents: list[list[int]]) -> torch.Tensor:
    """Summed next-token loss, one document at a time through transformers."""
    total = torch.zeros(())
    for row in documents:
        ids = torch.tensor([row])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
    return total


def packed_loss(model: Any, documents: list[list[int]]) -> torch.Tensor:
    """Summed next-token loss on the fast path."""
    program = program_of(model)
    assert program is not None
    packed = pack_rows(documents)
    places: list[int] = []
    labels: list[int] = []
    start = 0
    for row in documents:
        places += range(start, start + len(row) - 1)
        labels += row[1:]
        start += len(row)
    loss: torch.Tensor = program.loss(packed, torch.tensor(places), torch.tensor(labels))
    return loss


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
