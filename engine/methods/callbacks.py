"""What happens beside the training loop: step events, the schedule of evaluations and checkpoints, requests.

Whether to stop early follows from the history of held-out losses alone, which a checkpoint carries in its
trainer_state.json; so a resumed run decides what the uninterrupted one would have decided.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..runs.context import Stopped
from ..runs.events import EvalEvent, Event, StepEvent
from .random_numbers import RandomState

Emit = Callable[[Event], Any]


class Stats(Protocol):
    """The trainer's account of the last step; :class:`whet.engine.methods.sft.trainer.StepStats` is one."""

    loss: float
    tokens: int
    supervised_tokens: int
    grad_norm: float
    metrics: dict[str, float]


class Requests(Protocol):
    """What people ask of a running job; :class:`whet.engine.runs.context.RunContext` is one."""

    def stop_requested(self) -> str | None: ...
    def take_checkpoint_request(self) -> bool: ...


@dataclass(frozen=True)
class Held:
    """One evaluation: held-out loss in nats after a step."""

    step: int
    loss: float


def history(state: TrainerState) -> list[Held]:
    """The evaluations of a run so far, oldest first."""
    return [Held(int(log["step"]), log["eval_loss"]) for log in state.log_history if "eval_loss" in log]


def best_of(held: Sequence[Held]) -> Held | None:
    """The lowest finite held-out loss, the earlier one of equals."""
    finite = (one for one in held if math.isfinite(one.loss))
    return min(finite, key=lambda one: (one.loss, one.step), default=None)


def should_stop_early(held: Sequence[Held], patience: int | None, min_improvement: float) -> bool:
    """Whether the last ``patience`` evaluations each failed to improve by more than ``min_improvement``."""
    if patience is None:
        return False
    best, waited = float("inf"), 0
    for one in held:
        improved = one.loss < best - min_improvement
        waited = 0 if improved else waited + 1
        best = min(best, one.loss) if improved else best
    return waited >= patience


class StepReporter(TrainerCallback):
    """One event for every optimizer step, with what the trainer measured in it."""

    def __init__(self, emit: Emit, stats: Stats) -> None:
        self.emit, self.stats = emit, stats
        self.learning_rate = 0.0
        self.measured_tokens = 0
        self.measured_seconds = 0.0
        self.last: StepEvent | None = None
        self._steps = 0
        self._began = 0.0

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_pre_optimizer_step(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.learning_rate = float(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        seconds = time.perf_counter() - self._began
        if self._steps > 0:  # the first step warms up
            self.measured_tokens += self.stats.tokens
            self.measured_seconds += seconds
        self._steps += 1
        self.last = StepEvent(
            step=state.global_step,
            total_steps=state.max_steps,
            epoch=round(state.epoch or 0.0, 6),
            loss=self.stats.loss,
            learning_rate=self.learning_rate,
            grad_norm=self.stats.grad_norm,
            tokens=self.stats.tokens,
            supervised_tokens=self.stats.supervised_tokens,
            seconds=seconds,
            memory_bytes=memory_in_use(args.device),
            metrics=self.stats.metrics,
        )
        self.emit(self.last)


def memory_in_use(device: torch.device) -> int:
    """Peak bytes allocated on a GPU, resident set size of the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


STEP_PATIENCE = 10.0
"""Seconds that a step may take to end after a request to stop, before it is left undone: a machine that is
taken away gives 30."""


class Schedule(TrainerCallback):
    """When to evaluate, to save and to end: every N steps, at the last one, and when asked.

    A request to stop finishes the step and saves; a request to stop now ends at once. A long step, or an
    evaluation, is not waited for: it is left, and what the last step made is saved as it was then.

    Args:
        requests: of people.
        save_every, eval_every: in steps.
        save: writes a checkpoint, in all processes together.
        agree: makes one answer of all processes' answers; they must leave at the same place.
    """

    def __init__(
        self,
        requests: Requests,
        *,
        save_every: int,
        eval_every: int | None,
        save: Callable[[], None] | None = None,
        agree: Callable[[bool], bool] = bool,
    ) -> None:
        self.requests, self.save_every, self.eval_every = requests, save_every, eval_every
        self.save, self.agree = save, agree
        self._looked = -math.inf  # when nobody had asked yet
        self._unsaved: RandomState | None = None  # as the last step left it, while no checkpoint has it

    def owes_evaluation(self, state: TrainerState) -> bool:
        """Whether the step is to be evaluated and was not: a request to stop came in between."""
        due = self._evaluates(state.global_step, state.max_steps)
        return due and state.global_step not in [one.step for one in history(state)]

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._overdue(STEP_PATIENCE)

    def on_substep_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._leave(STEP_PATIENCE)

    def on_prediction_step(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._leave(0.0)

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._unsaved = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._stop_now()
        self._unsaved = RandomState(args.device)
        last = state.global_step >= state.max_steps
        asked = self.requests.take_checkpoint_request()
        if self.requests.stop_requested():
            asked = control.should_training_stop = True
        control.should_save = asked or last or state.global_step % self.save_every == 0
        if self.eval_every is not None:
            control.should_evaluate = self._evaluates(state.global_step, state.max_steps)

    def _evaluates(self, step: int, last: int) -> bool:
        return self.eval_every is not None and (step >= last or step % self.eval_every == 0)

    def _leave(self, patience: float) -> None:
        """Where neither the step nor the evaluation is at its end."""
        self._stop_now()
        if self.save is None or not self.agree(self._overdue(patience)):
            return
        if self._unsaved is not None:
            self._unsaved.restore()
            self.save()
        raise Stopped

    def _overdue(self, patience: float) -> bool:
        """A request to stop may have waited for so many seconds: since the last look that saw none."""
        now = time.monotonic()
        if self.requests.stop_requested() is None:
            self._looked = now
            return False
        return now - self._looked >= patience

    def _stop_now(self) -> None:
        if self.requests.stop_requested() == "now":
            raise Stopped


class HeldOut(TrainerCallback):
    """After each evaluation: the event, a checkpoint of the best weights, early stopping, samples.

    ``shown`` picks from the trainer's metrics what the event tells beside the loss.
    """

    def __init__(
        self,
        emit: Emit,
        *,
        patience: int | None,
        min_improvement: float,
        sample: Callable[[int], None],
        shown: Callable[[dict[str, float]], dict[str, float]] = lambda metrics: {},
    ) -> None:
        self.emit, self.sample, self.shown = emit, sample, shown
        self.patience, self.min_improvement = patience, min_improvement

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if metrics is None:
            return
        held = history(state)
        best = best_of(held)
        is_best = state.global_step > 0 and best is not None and best.step == state.global_step
        self.emit(
            EvalEvent(
                step=state.global_step,
                loss=metrics["eval_loss"],
                supervised_tokens=int(metrics.get("eval_supervised_tokens", 0)),
                seconds=metrics["eval_runtime"],
                best=is_best,
                metrics=self.shown(metrics),
            )
        )
        if is_best and best is not None:
            state.best_global_step, state.best_metric = best.step, best.loss
            control.should_save = True
        if should_stop_early(held, self.patience, self.min_improvement):
            control.should_save = control.should_training_stop = True
        self.sample(state.global_step)
