"""The live checks' place in the training loop: they see what the run says, and do what the recipe says."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..checks.live import Pace, Watch
from ..checks.live.watch import gradients
from ..errors import WhetError
from ..findings import Finding
from ..parallel.fsdp import whole
from ..parallel.process_group import rank
from ..recipe import Recipe
from ..runs.events import EvalEvent, FindingEvent
from .callbacks import Emit, StepReporter
from .gpu_load import GpuLoad

GPU_EVERY = 20
"""Steps between two questions to the driver."""
GPU_SECONDS = 2.0
"""And seconds: a question may keep the driver busy for milliseconds."""


class Watching(TrainerCallback):
    """Shows every step and evaluation to the live checks, emits what they find, and acts on errors.

    It comes after the callbacks that say the events and plan the checkpoints: it adds to their wishes.

    Args:
        emit: takes the findings.
        watch: the checks.
        recipe: says what an error does, and which are accepted.
        reporter: has the newest step event.
        trainer: counts the seconds spent on data.
    """

    def __init__(
        self, emit: Emit, watch: Watch, recipe: Recipe, reporter: StepReporter, trainer: Any
    ) -> None:
        self.emit, self.watch, self.recipe = emit, watch, recipe
        self.reporter, self.trainer = reporter, trainer
        self.gpu = GpuLoad(trainer.args.device)
        self.reason: Finding | None = None
        """The error that paused the run."""
        self._data_seconds = 0.0
        self._busy: float | None = None
        self._asked = -math.inf

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._act(gradients(*without_gradient(kwargs["model"])), state, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        spent = self.trainer.data_seconds
        others: tuple[str, ...] = ()
        if (answer := self.gpu.answer()) is not None:
            self._busy, others = answer
        if state.global_step % GPU_EVERY == GPU_EVERY // 2:
            self._ask()
        pace = Pace(spent - self._data_seconds, self._busy, others)
        self._data_seconds = spent
        assert self.reporter.last is not None
        self._act(self.watch.step(self.reporter.last, pace), state, control)

    def _ask(self) -> None:
        now = time.monotonic()
        if now - self._asked >= GPU_SECONDS:
            self._asked = now
            self.gpu.ask()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if metrics is not None:
            event = EvalEvent(
                step=state.global_step,
                loss=metrics["eval_loss"],
                supervised_tokens=int(metrics.get("eval_supervised_tokens", 0)),
                seconds=metrics["eval_runtime"],
                best=False,
            )
            self._act(self.watch.evaluated(event), state, control)

    def _act(self, findings: list[Finding], state: TrainerState, control: TrainerControl) -> None:
        if not findings or rank():
            return  # what a check decides is the first process's to decide
        for finding in findings:
            self.emit(FindingEvent(finding=finding))
            if finding.severity != "error" or finding.id in self.recipe.accept:
                continue
            wanted = self.recipe.checks.on_error
            if wanted == "stop":
                raise WhetError(
                    "train.stopped_by_check",
                    f"{finding.id} at step {state.global_step}: {finding.title}",
                    finding.fix.text if finding.fix else "",
                )
            if wanted in ("checkpoint", "pause"):
                control.should_save = True
            if wanted == "pause":
                control.should_training_stop = True
                self.reason = self.reason or finding


def without_gradient(model: torch.nn.Module) -> tuple[list[str], int]:
    """Names of trained parameters whose gradient is missing or zero throughout, and how many were looked at.

    An adapter's A matrices are left out: B starts at zero, so that A's first gradients are zero. So are
    experts, of which the first rows may choose none. One question to the device for all.
    """
    looked = [
        (name, param.grad)
        for name, param in model.named_parameters()
        if param.requires_grad and "lora_A" not in name and ".experts." not in name
    ]
    there = [(name, grad) for name, grad in looked if grad is not None]
    # Sums, not maxima: a weight of fewer rows than there are processes leaves some with an empty share.
    sums = torch.stack([whole(grad.abs().sum()).float() for _, grad in there]).tolist() if there else []
    alive = {name for (name, _), value in zip(there, sums, strict=True) if value != 0}
    return [name for name, _ in looked if name not in alive], len(looked)
