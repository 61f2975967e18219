"""The trainer of a run: checkpoints that are whole or do not count, and the way back into one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from ...findings import Finding
from ...models.adapters import save_weights
from ...runs.events import CheckpointEvent, FindingEvent, PhaseEvent
from ..checkpoints import rotate, step_folder, write_checkpoint
from .resuming import CURSOR, Cursor
from .trainer import SupervisedTrainer


class RunTrainer(SupervisedTrainer):
    """Writes ``output_dir/step-000030/``: weights, optimizer, schedule, scaler, random numbers, state.

    The data cursor is the step: the order of the rows follows from seed and epoch.

    Args:
        emit: takes the checkpoint events.
        keep: newest checkpoints kept besides the best.
        cursor: what the order of the rows follows from, written beside each checkpoint.
    """

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

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Held-out rows are padded, never packed, whatever collates the training rows."""
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
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

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Called by the training loop when a callback asked for a checkpoint."""
        began = time.perf_counter()
        root = Path(str(self.args.output_dir))
        step, best = self.state.global_step, self.state.best_global_step
        folder = step_folder(root, step)
        size = write_checkpoint(folder, self._write_state)
        rotate(root, self.keep, protect={best} if best else ())
        seconds = time.perf_counter() - began
        self.emit(
            CheckpointEvent(step=step, path=str(folder), bytes=size, seconds=seconds, best=step == best)
        )

    def _write_state(self, folder: Path) -> None:
        """Under transformers' own file names, so that its trainer can resume from them too."""
        save_weights(self.accelerator.unwrap_model(self.model), folder)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        if self.cursor is not None:
            (folder / CURSOR).write_text(self.cursor.model_dump_json(), encoding="utf-8")
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def load_weights(self, checkpoint: Path) -> None:
        """Put a checkpoint's weights into the model, and nothing else."""
        self._load_from_checkpoint(str(checkpoint))


def read_state(checkpoint: Path) -> TrainerState:
    """The trainer state a checkpoint was written with: step, epoch, history of evaluations."""
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
