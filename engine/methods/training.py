"""A run's training, whatever its method: from its plan to its trained weights; then export takes over.

Every part can be entered again: a finished checkpoint is resumed, finished weights are not trained twice. A
method says how its model and data are loaded, which trainer it has and what is written at the end.

Several processes may train together: all of them do what is here, and the first one alone samples, writes and
exports.
"""

from __future__ import annotations

import gc
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from ..checks.loaded import refuse
from ..findings import Finding
from ..models.fast_path import FastPathReport, slow_parts
from ..parallel.collectives import agreed, one_at_a_time, wait_for_all
from ..parallel.process_group import joined, rank, world_size
from ..parallel.topology import here
from ..rates import record_rate
from ..runs.context import PAUSED_BY, RunContext, Stopped
from ..runs.events import FAST_PATH, ExportEvent, FindingEvent, PhaseEvent
from ..runs.jobs import EvaluateJob
from ..runs.manifest import MANIFEST, SUMS
from .callbacks import HeldOut, Schedule, StepReporter, best_of, history, should_stop_early
from .checkpoints import delete_incomplete, last_complete, step_folder, write_checkpoint
from .damage import set_aside_damaged
from .evaluating import evaluate_method
from .measuring import measure_once
from .memory_errors import out_of_memory_said
from .rank_agreement import Agreement, first_says
from .resuming import ranks_in
from .run_checkpoints import read_state
from .watching import Watching


def run_method(context: RunContext, method: Callable[[RunContext], Training]) -> None:
    """Train what the plan says and export it, or measure what was trained. See
    :func:`whet.engine.methods.jobs.run_job`."""
    job = context.dir.load_job()
    if isinstance(job, EvaluateJob):
        torch.set_num_threads(context.plan.resolved.threads)
        transformers_logging.disable_progress_bar()
        evaluate_method(context, job, method)
        return
    train(context, method)
    if not here().is_main:
        return
    context.trained()
    context.leave_if_asked()
    measure_once(context)
    context.leave_if_asked()
    from ..export.of_run import export_run

    export_run(context)


def train(context: RunContext, method: Callable[[RunContext], Training]) -> Path:
    """The folder of the trained weights: trained now, from the last checkpoint on, or earlier."""
    torch.set_num_threads(context.plan.resolved.threads)
    transformers_logging.disable_progress_bar()
    trained = trained_folder(context)
    with joined(context.plan.resolved.device):
        (done,) = agreed(int(trained.is_dir()))
        if done:
            return trained
        if rank() == 0:
            for finding in set_aside_damaged(context.dir.checkpoints):
                context.emit(FindingEvent(finding=finding))
            delete_incomplete(context.dir.checkpoints)
        wait_for_all()
        method(context).run(trained)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return trained


def trained_folder(context: RunContext) -> Path:
    """Where the trained weights lie once they are whole: ``export/adapter``, or ``export/model`` in full."""
    full = context.recipe.adapter.kind == "none"
    return context.dir.export / ("model" if full else "adapter")


class Training(ABC):
    """One attempt at training. A method's constructor loads, builds ``trainer`` and calls :meth:`report`."""

    trainer: Any
    """A transformers trainer with :class:`.run_checkpoints.RunCheckpoints` and ``stats`` for the reporter."""
    reporter: StepReporter
    schedule: Schedule
    watching: Watching | None = None

    def __init__(self, context: RunContext) -> None:
        self.context, self.recipe, self.plan = context, context.recipe, context.plan
        self.resolved = context.plan.resolved
        context.summary.pop(PAUSED_BY, None)

    @abstractmethod
    def look(self, checkpoint: Path | None) -> None:
        """The checks before the first step, or before the checkpoint is resumed."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """The trained weights and all that belongs to them."""

    def running(self) -> AbstractContextManager[Any]:
        """What must be there while the trainer trains or evaluates; by default nothing."""
        return nullcontext()

    def sample(self, step: int) -> None:  # noqa: B027  (optional)
        """Show what the model makes of the recipe's prompts; by default nothing."""

    def sample_alone(self, step: int) -> None:
        """:meth:`sample` in the first process, while the others wait; in all where each holds a share."""
        with one_at_a_time() as mine:
            if mine or self.resolved.strategy == "fsdp":
                self.sample(step)

    def shown(self, metrics: dict[str, float]) -> dict[str, float]:
        """Of the trainer's metrics, those that an evaluation tells beside the loss."""
        return {}

    def before_first_step(self) -> None:  # noqa: B027  (optional)
        """What is measured of the untrained model beside its held-out loss; by default nothing."""

    def say_fused(self, report: FastPathReport) -> None:
        """What of the model runs on whet's kernels, and the note where not all of it does."""
        self.context.emit(PhaseEvent(phase="load", detail=f"{FAST_PATH}{report}"))
        if not report.complete:
            self.context.emit(FindingEvent(finding=slow_parts(report)))

    def report(self, evaluates: bool) -> None:
        """The callbacks of a run: step events, the schedule, held-out results."""
        recipe, emit = self.recipe, self.context.emit
        self.trainer.embedding_rate = self.resolved.embedding_learning_rate
        self.reporter = StepReporter(emit, self.trainer.stats)
        eval_every = self.resolved.eval_every if evaluates else None
        held_out = HeldOut(
            emit,
            patience=recipe.eval.early_stopping,
            min_improvement=recipe.eval.min_improvement,
            sample=self.sample_alone,
            shown=self.shown,
        )
        self.schedule = Schedule(
            self.context,
            save_every=self.resolved.save_every,
            eval_every=eval_every,
            save=self._save_checkpoint,
            agree=first_says,
        )
        callbacks: list[TrainerCallback] = [self.reporter, self.schedule, held_out]
        for callback in callbacks:
            self.trainer.add_callback(callback)

    def run(self, trained: Path) -> None:
        """Train to the end (or to a request to stop) and save the weights at ``trained``."""
        checkpoint = last_complete(self.context.dir.checkpoints)
        if checkpoint is not None and self._is_finished(checkpoint):
            self.trainer.load_weights(checkpoint)
            self.trainer.state = read_state(checkpoint)
            if self.schedule.owes_evaluation(self.trainer.state):
                self.trainer.evaluate()
            # The attempt that wrote it may not have come to these.
            self.trainer.rotate_checkpoints()
            self.context.update(last_checkpoint=str(checkpoint))
        else:
            self.look(checkpoint)
            self._train(checkpoint)
        if self.recipe.eval.early_stopping is not None:
            self._take_best()
        with self.trainer.gathered():
            if rank() == 0:
                self._save(trained)
        self._summarise()

    def say(self, findings: list[Finding]) -> None:
        """Emit findings before the first step; an error that is not accepted ends the run here."""
        for finding in findings:
            self.context.emit(FindingEvent(finding=finding))
        refuse(findings, self.recipe)

    def _stops_early(self, state: Any) -> bool:
        section = self.recipe.eval
        return should_stop_early(history(state), section.early_stopping, section.min_improvement)

    def _is_finished(self, checkpoint: Path) -> bool:
        state = read_state(checkpoint)
        return self._stops_early(state) or state.global_step >= self.resolved.total_steps

    def _train(self, checkpoint: Path | None) -> None:
        has_eval = self.trainer.eval_dataset is not None
        if checkpoint is None:
            if has_eval:
                with out_of_memory_said(self.context):
                    self.trainer.evaluate()
            else:
                self.sample_alone(0)
            self.before_first_step()
        if first_says(self.context.stop_requested() is not None):
            raise Stopped
        detail = resuming_from(checkpoint) if checkpoint else ""
        if world_size() > 1:
            self.trainer.add_callback(Agreement())
        total = self.resolved.total_steps
        if checkpoint is not None:
            self.trainer.args.eval_on_start = self.schedule.owes_evaluation(read_state(checkpoint))
        self.context.emit(PhaseEvent(phase="train", detail=detail, total=total))
        with out_of_memory_said(self.context):
            self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if self.trainer.state.global_step < total and not self._stops_early(self.trainer.state):
            self._say_why_paused()
            raise Stopped
        if not has_eval:
            self.sample_alone(self.trainer.state.global_step)
        if self.reporter.measured_seconds > 0 and rank() == 0:
            rate = self.reporter.measured_tokens / self.reporter.measured_seconds
            record_rate(self.plan.model, self.resolved, rate)

    def _save_checkpoint(self) -> None:
        self.trainer._save_checkpoint(self.trainer.model, None)

    def _say_why_paused(self) -> None:
        """The finding that paused the run ends in its state and its last event."""
        reason = self.watching.reason if self.watching is not None else None
        if reason is not None:
            self.context.summary[PAUSED_BY] = f"{reason.id}: {reason.title}"
            self.context.update(summary=self.context.summary)

    def _take_best(self) -> None:
        """Go back to the weights of the lowest held-out loss, and let them have the last word in samples."""
        best = best_of(history(self.trainer.state))
        if best is not None and best.step != self.trainer.state.global_step:
            self.trainer.load_weights(step_folder(self.context.dir.checkpoints, best.step))
            self.sample_alone(best.step)

    def _save(self, trained: Path) -> None:
        """They appear whole, by rename."""
        partial = trained.with_name(f".{trained.name}.partial")
        size = write_checkpoint(partial, self.write)
        os.replace(partial / MANIFEST, partial / SUMS)
        os.replace(partial, trained)
        self.context.emit(ExportEvent(kind=trained.name, path=str(trained), bytes=size))

    def _summarise(self) -> None:
        state = self.trainer.state
        held = history(state)
        best = best_of(held)
        self.context.summary |= {
            "steps": state.global_step,
            "early_stopped": state.global_step < state.max_steps,
        }
        if best is not None:
            self.context.summary |= {
                "eval_loss": held[-1].loss,
                "best_eval_loss": best.loss,
                "best_step": best.step,
            }
        self.context.update(summary=self.context.summary)


def resuming_from(checkpoint: Path) -> str:
    """What the run says of the checkpoint that it goes on from."""
    before, now = ranks_in(checkpoint), world_size()
    text = f"resuming from {checkpoint.name}"
    if before == now:
        return text
    wrote = "one process" if before == 1 else f"{before} processes"
    left = "one" if now == 1 else str(now)
    return f"{text}, which {wrote} wrote: {left} now, with random numbers of their own from here on"
