"""How much an evaluation that returns predictions would keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch.utils.data import DataLoader

from ...checks.evaluation import PredictionFacts
from ...models.fast_path import causal_model

if TYPE_CHECKING:
    from .trainer import SupervisedTrainer


def prediction_facts(trainer: SupervisedTrainer, loader: DataLoader) -> PredictionFacts:
    """Of the rows a loader is about to give."""
    device, host = trainer.args.device, int(psutil.virtual_memory().available)
    held_out: Any = loader.dataset
    rows: list[int] = [len(row["input_ids"]) for row in held_out]
    narrow = trainer.args.bf16_full_eval or trainer.args.fp16_full_eval
    free = host
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return PredictionFacts(
        rows=len(rows),
        batch=trainer.args.per_device_eval_batch_size,
        longest=max(rows, default=0),
        vocabulary=int(causal_model(trainer.model).config.get_text_config().vocab_size),
        width=2 if narrow else 4,
        accumulation=trainer.args.eval_accumulation_steps,
        device_free=free,
        host_free=host,
        on_cpu=device.type == "cpu",
    )
