"""A trainer's checkpoints in a run: whole or they do not count, and the way back into one.

Of several processes the first writes what all of them hold alike; each adds its own random numbers before the
manifest makes the checkpoint count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState, set_seed
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from ..models.adapters import save_weights
from ..parallel.collectives import wait_for_all
from ..parallel.process_group import rank, world_size
from ..runs.events import CheckpointEvent
from .checkpoints import rotate, step_folder, write_checkpoint
from .rank_seeds import rank_seed
from .resuming import CURSOR, Cursor, ranks_in


class RunCheckpoints:
    """Goes before transformers' trainer (or TRL's, or sentence-transformers') among a class's bases.

    Writes ``output_dir/step-000030/``: weights, optimizer, schedule, scaler, random numbers, state. The data
    cursor is the step: the order of the rows follows from seed and epoch.
    """

    emit: Callable[[Any], Any]
    """Takes the checkpoint events."""
    keep: int
    """Newest checkpoints kept besides the best."""
    cursor: Cursor | None
    """What the order of the rows follows from, written beside each checkpoint."""
    whole: dict[str, torch.Tensor] | None = None
    """What trains, gathered to be written; None where the model itself holds it whole."""

    def create_optimizer(self: Any, model: Any = None) -> torch.optim.Optimizer:
        """As the base class, without groups that have no parameters, as the flat optimizer's: its states and
        a schedule's count groups, and a run may go on with the other optimizer."""
        given = [] if model is None else [model]
        optimizer: torch.optim.Optimizer = super().create_optimizer(*given)  # type: ignore[misc]
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def _save_checkpoint(self: Any, model: torch.nn.Module, trial: Any) -> None:
        """Called by the training loop when a callback asked for a checkpoint."""
        began = time.perf_counter()
        root = Path(str(self.args.output_dir))
        step, best = self.state.global_step, self.state.best_global_step
        folder = step_folder(root, step)
        if rank():
            self._add_random_numbers(folder)
            return
        size = write_checkpoint(folder, self._write_state)
        self.rotate_checkpoints()
        seconds = time.perf_counter() - began
        self.emit(
            CheckpointEvent(step=step, path=str(folder), bytes=size, seconds=seconds, best=step == best)
        )

    def rotate_checkpoints(self: Any) -> None:
        """Keep the newest ones and the best; the first of several processes does it."""
        if rank():
            return
        best = self.state.best_global_step
        rotate(Path(str(self.args.output_dir)), self.keep, protect={best} if best else ())

    def _write_state(self: Any, folder: Path) -> None:
        """Under transformers' own file names, so that its trainer can resume from them too."""
        self.write_weights(folder)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._add_random_numbers(folder)
        if self.cursor is not None:
            (folder / CURSOR).write_text(self.cursor.model_dump_json(), encoding="utf-8")
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _add_random_numbers(self: Any, folder: Path) -> None:
        """Each process its own, into the folder that the first one made."""
        wait_for_all()
        self._save_rng_state(str(folder))
        wait_for_all()

    def _load_rng_state(self: Any, checkpoint: str | None) -> None:
        """Those of this process; other ones where another number of processes wrote the checkpoint."""
        if checkpoint is None or ranks_in(Path(checkpoint)) == world_size():
            super()._load_rng_state(checkpoint)  # type: ignore[misc]
        else:
            set_seed(rank_seed(self.args.seed, rank(), self.state.global_step))

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        """As the base class for one process. What several read it would put on each GPU, beside the states
        that it is copied into; a file that is mapped into memory is there once for all of them."""
        if checkpoint is None or world_size() == 1 or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            return
        folder = Path(checkpoint)
        mapped = self.args.device.type != "cpu"  # an optimizer there would go on with the file itself
        state = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True, mmap=mapped)
        self.optimizer.load_state_dict(_let_go(self.own_states(state)))
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))

    def own_states(self, state: dict[str, Any]) -> dict[str, Any]:
        """What this process's optimizer takes of a checkpoint's: all of it."""
        return state

    def write_weights(self: Any, folder: Path) -> None:
        """What trains, as safetensors."""
        save_weights(self.accelerator.unwrap_model(self.model), folder, self.whole)

    def gathered(self) -> AbstractContextManager[None]:
        """While it lasts, what trains can be written by the first process. All processes enter it."""
        return nullcontext()

    def load_weights(self: Any, checkpoint: Path) -> None:
        """Put a checkpoint's weights into the model, and nothing else."""
        self._load_from_checkpoint(str(checkpoint))


def _let_go(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's counts of steps stay on the CPU: copied, or they would hold on to the file they lie in,
    and NFS deletes no folder of a file that is held."""
    moments = {
        key: {
            name: value.clone() if isinstance(value, torch.Tensor) and value.dim() == 0 else value
            for name, value in entry.items()
        }
        for key, entry in state["state"].items()
    }
    return {**state, "state": moments}


def read_state(checkpoint: Path) -> TrainerState:
    """The trainer state a checkpoint was written with: step, epoch, history of evaluations."""
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
