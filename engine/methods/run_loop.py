"""What a run needs of any transformers trainer: its steps counted, nothing in them that is not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback

from ..errors import WhetError
from ..models.fast_path import causal_model
from ..runs.events import PhaseEvent
from .embedding_rate import split_embedding_groups
from .random_numbers import preserved_rng
from .rank_steps import RankSteps
from .resuming import Cursor
from .run_checkpoints import RunCheckpoints


@dataclass
class StepStats:
    """What the last finished optimizer step saw."""

    loss: float = math.nan
    """Mean over the step's micro-batches."""
    tokens: int = 0
    supervised_tokens: int = 0
    grad_norm: float = math.nan
    """L2 norm over all trained parameters, before clipping."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What the method measures beside."""


class RunLoop(RunCheckpoints, RankSteps):
    """Goes before a trainer of transformers' shape among a class's bases.

    A loss or a gradient that is not finite ends the run before it reaches the weights, and evaluation leaves
    the random numbers alone.

    Args:
        emit: takes events.
        keep: newest checkpoints kept besides the best.
        cursor: what the order of the rows follows from.
    """

    def __init__(
        self,
        *args: Any,
        emit: Callable[[Any], Any],
        keep: int,
        cursor: Cursor | None = None,
        **more: Any,
    ) -> None:
        super().__init__(*args, **more)
        self.emit, self.keep, self.cursor = emit, keep, cursor
        self.stats = StepStats()
        self.embedding_rate: float | None = None
        """Of embedding and head that train whole; None is the learning rate."""
        self.data_seconds = 0.0
        self._parts: list[tuple[torch.Tensor, int]] = []
        for callback in (PrinterCallback, ProgressCallback):  # they write to stdout
            self.remove_callback(callback)

    def count_tokens(self, inputs: dict[str, Any]) -> int:
        """Tokens of a micro-batch, padding excluded."""
        masks = [value for name, value in inputs.items() if name.endswith("attention_mask")]
        return int(sum(int(mask.sum()) for mask in masks))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The base class's; it counts the time that rows take."""
        began = time.perf_counter()
        found = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.data_seconds += time.perf_counter() - began
        return found

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The base class's, with groups of their own for embedding and head that have another rate."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(*([] if model is None else [model]))
        if self.embedding_rate is not None:
            split_embedding_groups(optimizer, causal_model(self.model), self.embedding_rate)
        return optimizer

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """One micro-batch, forward and backward; its share of the step's loss."""
        filler = self.filler
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        tokens = 0 if filler else self.count_tokens(inputs)
        self._parts.append((loss, tokens))
        if self.accelerator.sync_gradients:
            self.stats.loss, (self.stats.tokens,) = self.over_ranks(
                torch.stack([part for part, _ in self._parts]).sum(), sum(tokens for _, tokens in self._parts)
            )
            self.stats.supervised_tokens = self.stats.tokens
            self._parts.clear()
            if not math.isfinite(self.stats.loss):
                raise _not_finite("loss", self.stats.loss)
        return loss

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        """Clips, and keeps the norm before clipping. fp16's scaler skips its own overflows."""
        norm = super()._clip_grad_norm(model)
        self.stats.grad_norm = float(norm)
        if not math.isfinite(self.stats.grad_norm) and self.accelerator.scaler is None:
            raise _not_finite("gradient norm", self.stats.grad_norm)
        return norm

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the base class; says that it began, and leaves the random numbers as they were."""
        self.emit(PhaseEvent(phase="eval", detail=f"step {self.state.global_step}"))
        with preserved_rng(self.args.device):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics


def _not_finite(what: str, value: float) -> WhetError:
    return WhetError(
        "train.not_finite",
        f"The {what} is {value}. The weights were not changed by this step.",
        "Lower training.learning_rate, or train in bf16 or fp32; a broken row can also be the cause.",
    )
