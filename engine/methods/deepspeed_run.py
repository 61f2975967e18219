"""A trainer that DeepSpeed may hold: its checkpoints are DeepSpeed's own, whole or they do not count."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from torch.serialization import get_unsafe_globals_in_checkpoint
from transformers import Trainer

from ..errors import WhetError
from ..findings import Finding
from ..parallel.collectives import wait_for_all
from ..parallel.process_group import rank, world_size
from .resuming import deepspeed_ranks
from .sft.culprit import way_out

KNOWN = frozenset(
    {
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    }
)
"""What DeepSpeed's states are made of beside tensors and plain values; none of it does anything."""


def refuse_code(checkpoint: Path) -> None:
    """Look through the states of a checkpoint before DeepSpeed, which unpickles whatever they name, does.

    Raises WhetError ``deepspeed.checkpoint_code``.
    """
    for file in sorted(checkpoint.glob("*/*.pt")):
        try:
            strange = set(get_unsafe_globals_in_checkpoint(file)) - KNOWN
        except (ValueError, RuntimeError, UnpicklingError) as error:
            strange = {str(error).strip().splitlines()[0]}
        if strange:
            raise WhetError(
                "deepspeed.checkpoint_code",
                f"{file} holds more than DeepSpeed's states: {', '.join(sorted(strange)[:3])}. Nothing was "
                "loaded.",
                "Delete this checkpoint to go on from the one before it; else start a new run.",
            )


class DeepSpeedRun(Trainer):
    """Goes before :class:`.run_checkpoints.RunCheckpoints` among a class's bases; without DeepSpeed it adds
    nothing but a refusal of DeepSpeed's checkpoints."""

    def _add_random_numbers(self: Any, folder: Path) -> None:
        """As the base class; the processes that do not write the checkpoint add their states to it too."""
        if rank() and self.is_deepspeed_enabled:
            self._save_optimizer_and_scheduler(str(folder))
        super()._add_random_numbers(folder)  # type: ignore[misc]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As the base class; DeepSpeed's processes write together, once the first has made the folder."""
        if self.is_deepspeed_enabled:
            wait_for_all()
        super()._save_optimizer_and_scheduler(output_dir)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the base class.

        Raises:
            WhetError: ``deepspeed.checkpoint`` for a checkpoint that DeepSpeed wrote with other processes, or
                that only one of the two attempts used DeepSpeed for; ``deepspeed.checkpoint_code``.
        """
        if resume_from_checkpoint:
            self._refuse_others(Path(resume_from_checkpoint))
            refuse_code(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _not_finite(self: Any, what: str, value: float) -> WhetError:
        """As the base class; but DeepSpeed steps within the backward pass, before a loss or norm can be
        looked at. So the weights are not searched for where it began: it may be this step that broke them."""
        if not self.is_deepspeed_enabled:
            return super()._not_finite(what, value)  # type: ignore[misc]
        step, fix = self.state.global_step + 1, way_out(self)
        finding = Finding(
            id="T01",
            severity="error",
            title=f"The {what} of step {step} is {value}.",
            evidence={
                "step": step,
                what.replace(" ", "_"): str(value),
                "learning_rate": self.args.learning_rate,
            },
            fix=fix,
        )
        self.found(finding)
        return WhetError(
            "train.not_finite",
            f"{finding.title} DeepSpeed had taken the step by then, so the weights in memory may be broken; "
            "they are not saved, and finished checkpoints are untouched.",
            f"{fix.text} The data of this step may also hold a broken row.",
        )

    def _refuse_others(self, checkpoint: Path) -> None:
        wrote, here = deepspeed_ranks(checkpoint), world_size() if self.is_deepspeed_enabled else 0
        if wrote != here:
            raise WhetError(
                "deepspeed.checkpoint",
                f"{checkpoint.name} was written {_by(wrote)}, and this attempt goes on {_by(here)}: "
                "the optimizer's states lie in as many shares.",
                "Resume with hardware.gpus and hardware.deepspeed as they were, or start a new run.",
            )


def _by(processes: int) -> str:
    return f"by {processes} processes of DeepSpeed" if processes else "without DeepSpeed"
