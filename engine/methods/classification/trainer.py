"""transformers' trainer in a run of a model with a task's head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.nn import functional
from transformers import Trainer

from ...models.adapters import save_weights
from ..head_batches import IGNORED, HeadBatch
from ..head_steps import HeadSteps
from ..run_loop import RunLoop

ADAPTER = "adapter_model.safetensors"


class HeadTrainer(RunLoop, Trainer):
    """Its checkpoints hold adapter and head as PEFT saves them, or the whole model."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        own: Any = self.model
        if isinstance(own, PeftModel):
            set_peft_model_state_dict(own, load_file(Path(resume_from_checkpoint) / ADAPTER))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint)


Loss = Callable[..., torch.Tensor]


def cross_entropy(weights: torch.Tensor | None = None) -> Loss:
    """Mean over all labels of a step, whatever micro-batches they came in, in nats.

    Args:
        weights: a factor a class, for rows of it.
    """

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs.logits.float()
        factors = None if weights is None else weights.to(logits.device)
        total = functional.cross_entropy(
            logits.flatten(0, -2), labels.flatten(), factors, ignore_index=IGNORED, reduction="sum"
        )
        return total / _count(labels, num_items_in_batch)

    return loss


def binary_cross_entropy(weights: torch.Tensor | None = None) -> Loss:
    """Mean over rows and classes, each class by itself: a row may have any number of them.

    Args:
        weights: a factor a class, for rows that have it.
    """

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs.logits.float()
        factors = None if weights is None else weights.to(logits.device)
        total = functional.binary_cross_entropy_with_logits(
            logits, labels, pos_weight=factors, reduction="sum"
        )
        return total / _count(labels, num_items_in_batch)

    return loss


def _count(labels: torch.Tensor, given: Any) -> torch.Tensor:
    """Of a step; at least one, since a step may have none that counts."""
    count = labels.ne(IGNORED).sum() if given is None else torch.as_tensor(given)
    return count.clamp_min(1)


class ClassifierTrainer(HeadTrainer, HeadSteps):
    """Over texts, packed where the encoder is on the fast path."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.choose_steps(self.processing_class)

    def pack(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Texts packed; the labels stay, for transformers counts them."""
        assert self.packing is not None
        packed = self.packing.pack(batch, batch["labels"])
        return batch if packed is None else {"texts": packed, "labels": batch["labels"]}

    def head_loss(self, batch: HeadBatch, divisor: torch.Tensor) -> torch.Tensor:
        """The method's, of the model's own head."""
        loss: Loss = self.compute_loss_func  # type: ignore[assignment]
        model: Any = self.model
        return loss(model(head_texts=batch.texts), batch.labels, num_items_in_batch=divisor)

    def divisor(self, items: Any) -> Any:
        """Labels of the step."""
        return items

    def count_tokens(self, inputs: dict[str, Any]) -> int:
        """Tokens of a micro-batch, padding excluded."""
        batch = inputs.get("texts")
        return batch.tokens if isinstance(batch, HeadBatch) else super().count_tokens(inputs)


def save_headed(model: Any, tokenizer: Any, config: Any, folder: Path) -> None:
    """Weights, tokenizer, and a config.json that names the classes, beside an adapter too."""
    save_weights(model, folder)
    tokenizer.save_pretrained(folder)
    if isinstance(model, PeftModel):
        config.architectures = [type(model.get_base_model()).__name__]
        config.save_pretrained(folder)
