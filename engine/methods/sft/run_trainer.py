"""The trainer of a run of supervised fine-tuning: it says what it does, and its checkpoints count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch.utils.data import DataLoader
from transformers import PrinterCallback

from ...findings import Finding
from ...parallel.process_group import rank
from ...runs.events import FindingEvent, PhaseEvent
from ..deepspeed_run import DeepSpeedRun
from ..resuming import Cursor
from ..run_checkpoints import RunCheckpoints
from ..shares import EachNth
from ..weight_shares import WeightShares
from .trainer import SupervisedTrainer


class RunTrainer(WeightShares, DeepSpeedRun, RunCheckpoints, SupervisedTrainer):
    """See :class:`.run_checkpoints.RunCheckpoints` for its arguments and what a checkpoint holds."""

    def __init__(
        self,
        model: Any,
        args: Any,
        *,
        emit: Callable[[Any], Any],
        keep: int,
        cursor: Cursor | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, **kwargs)
        self.cursor = cursor
        self.remove_callback(PrinterCallback)  # writes to stdout
        self.emit, self.keep = emit, keep
        self.eval_collator: Callable[..., Any] = self.data_collator

    def found(self, finding: Finding) -> None:
        """Say it."""
        self.emit(FindingEvent(finding=finding))

    def between_micro_batches(self) -> None:
        """The run's callbacks look for a request to stop, as they do between the plain path's."""
        self.control = self.callback_handler.on_substep_end(self.args, self.state, self.control)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Held-out rows are padded, never packed, whatever collates the training rows."""
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if self.ranks > 1:
            shares = EachNth(len(rows), self.args.per_device_eval_batch_size, rank(), self.ranks)
            return DataLoader(rows, batch_sampler=shares, collate_fn=self.eval_collator)
        loader = DataLoader(
            rows,
            batch_size=self.args.per_device_eval_batch_size,
            collate_fn=self.eval_collator,
            shuffle=False,
        )
        return cast(DataLoader, self.accelerator.prepare(loader))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the base class, and says that it began."""
        self.emit(PhaseEvent(phase="eval", detail=f"step {self.state.global_step}"))
        return super().evaluate(*args, **kwargs)
