"""Next-token distributions of transformers models over the same tokens, and how far apart they are. Needs
torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from ..models.own_files import LOCAL
from .smoke_cases import Limits

ROW_TOKENS = 96
"""Of each text: many short beginnings see more of the vocabulary than few long texts."""


def pick_sequences(request: dict[str, Any], folder: Path) -> list[list[int]]:
    """Token ids: held-out rows first, then plain texts, until there are positions enough.

    Args:
        request: ``rows`` of ids, ``texts``, and how many ``positions`` in all.
        folder: of the tokenizer.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, **LOCAL)
    limits = Limits(positions=request["positions"])
    left, chosen = limits.positions_for(len(tokenizer)), []
    for ids in [*request["rows"], *(tokenizer(text).input_ids for text in request["texts"])]:
        cut = ids[: min(ROW_TOKENS, left)]
        if len(cut) >= 2:
            chosen.append(cut)
            left -= len(cut)
        if left < 2:
            break
    return chosen


@torch.no_grad()
def log_probabilities(model: Any, sequences: list[list[int]]) -> torch.Tensor:
    """[T, V] float32 on the CPU: positions of all sequences one after another, vocabulary."""
    parts = []
    for ids in sequences:
        output = model(input_ids=torch.tensor([ids], device=model.device))
        # Without a head, the hidden states serve as well to tell two models apart.
        logits_TV = (output.logits if "logits" in output else output.last_hidden_state)[0].float()
        parts.append(torch.log_softmax(logits_TV, dim=-1).cpu())
    return torch.cat(parts)


def divergence(p_TV: torch.Tensor, q_TV: torch.Tensor) -> dict[str, Any]:
    """KL(p || q) a position, in nats; a vocabulary of another size is told, not compared."""
    if p_TV.shape != q_TV.shape:
        return {"mean": float("inf"), "max": float("inf"), "columns": [p_TV.shape[1], q_TV.shape[1]]}
    kl_T = (p_TV.double().exp() * (p_TV.double() - q_TV.double())).sum(dim=-1)
    same = (p_TV.argmax(-1) == q_TV.argmax(-1)).float().mean()
    return {"mean": float(kl_T.mean()), "max": float(kl_T.max()), "same_top": float(same)}
