"""transformers' trainer for models that see: the loss of a step over its supervised tokens alone.

Shapes: B rows, T tokens, K places whose next token is supervised in any row, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from ...parallel.collectives import sum_counts, sum_numbers
from ..run_loop import RunLoop
from ..sft.ahead import BatchesAhead
from ..sft.collation import IGNORED, count_supervised
from ..shares import counted
from .inputs import alike

ADAPTER = "adapter_model.safetensors"


class AnswersLoss(Trainer):
    """The mean loss over all supervised tokens of an optimizer step, or of a held-out set."""

    data_seconds: float = 0.0
    """Spent on reading ahead, and by a run's loop on all rows."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.model_accepts_loss_kwargs = True  # the loss below takes the step's count of tokens
        self._ahead = BatchesAhead()

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The base class's, from batches whose images were read while the step before was computed."""
        batches = self._ahead.take(epoch_iterator, num_batches)
        return batches, self._get_num_items_in_batch(batches, device)

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """As the base class; the GPU has its work then, and the next step's images are read."""
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.data_seconds += self._ahead.fetch()
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Of a micro-batch: its sum over ``num_items_in_batch`` supervised tokens, by default its own."""
        total = torch.zeros((), device=inputs["labels"].device)
        for logits_BKV, targets_BK in answer_logits(model, inputs):
            total = total + F.cross_entropy(
                logits_BKV.flatten(0, 1).float(), targets_BK.flatten(), ignore_index=IGNORED, reduction="sum"
            )
        count = count_supervised(inputs["labels"]) if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.as_tensor(count, device=total.device).clamp(min=1)
        return (loss, {}) if return_outputs else loss

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Mean loss over all supervised tokens, and the share of them that is predicted right."""
        model: Any = self.model
        model.eval()
        nll = torch.zeros((), dtype=torch.float64)
        right = supervised = rows = 0
        for batch, counts in counted(dataloader):
            inputs = self._prepare_inputs(batch)
            with torch.no_grad(), self.accelerator.autocast():
                parts = list(answer_logits(model, inputs))
            for logits_BKV, targets_BK in parts:
                if not counts:
                    continue
                learnt = targets_BK != IGNORED
                logits_NV, targets_N = logits_BKV[learnt].float(), targets_BK[learnt]
                nll += F.cross_entropy(logits_NV, targets_N, reduction="sum").double().cpu()
                right += int((logits_NV.argmax(-1) == targets_N).sum())
                supervised += len(targets_N)
                rows += len(targets_BK)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        (total,) = sum_numbers(float(nll))
        right, supervised, rows = sum_counts(right, supervised, rows)
        metrics = {
            f"{metric_key_prefix}_loss": total / supervised if supervised else math.nan,
            f"{metric_key_prefix}_token_accuracy": right / supervised if supervised else math.nan,
        }
        nothing: Any = None
        return EvalLoopOutput(predictions=nothing, label_ids=None, metrics=metrics, num_samples=rows)


def answer_logits(model: Any, inputs: dict[str, Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits (B, K, V) of the places before supervised tokens, and those tokens (B, K), ignored ones among
    them; of each part of a batch (:func:`.inputs.alike`). The vocabulary is multiplied with nothing else."""
    for part in alike(inputs):
        following_BT = part["labels"][:, 1:]
        places_K = (following_BT != IGNORED).any(0).nonzero().flatten()
        given = {name: value for name, value in part.items() if name != "labels"}
        logits_BKV = model(**given, use_cache=False, logits_to_keep=places_K).logits
        yield logits_BKV, following_BT[:, places_K]


class VisionTrainer(RunLoop, AnswersLoss):
    """In a run."""

    shares_held_out = True

    def count_tokens(self, inputs: dict[str, Any]) -> int:
        """Tokens of a micro-batch, padding excluded."""
        return int(inputs["attention_mask"].sum())

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """As the base class; the step's supervised tokens are those that the loss is a mean over."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients and num_items_in_batch is not None:
            self.stats.supervised_tokens = int(num_items_in_batch)
        return loss

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        own: Any = self.model
        if isinstance(own, PeftModel):
            set_peft_model_state_dict(own, load_file(Path(resume_from_checkpoint) / ADAPTER))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint)
