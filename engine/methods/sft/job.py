"""Supervised fine-tuning from a run's plan to its trained weights; then export takes over.

Every part can be entered again: a finished checkpoint is resumed, finished weights are not trained twice.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers.utils import logging as transformers_logging

from ...checks.loaded import look_at_loaded, refuse
from ...checks.weights import look_at
from ...data.packing import pack
from ...findings import Finding
from ...models.adapters import save_weights
from ...models.fast_path import program_of, slow_parts
from ...models.loading import DTYPES, ModelHandle
from ...rates import record_rate
from ...runs.context import PAUSED_BY, RunContext, Stopped
from ...runs.events import FAST_PATH, ExportEvent, FindingEvent, PhaseEvent, SampleEvent
from ..callbacks import HeldOut, Schedule, StepReporter, best_of, history, should_stop_early
from ..checkpoints import MANIFEST, delete_incomplete, last_complete, step_folder, write_checkpoint
from ..measuring import measure_once
from ..optimizers import usable_optimizer
from ..sampling import answers
from ..watching import Watching
from .arguments import training_arguments
from .collation import PackingCollator, PaddingCollator
from .first_look import files_of, first_facts, watch_run
from .fp8_check import fp8_finding
from .loading import load_trainee, locate_base, open_rows, planned_tokens
from .memory_errors import out_of_memory_said
from .packed_steps import PaddingFreeCollator
from .resuming import cursor_of, look_at_checkpoint
from .run_trainer import RunTrainer, read_state
from .scheduled import follow
from .self_tests import self_tests


def run_sft(context: RunContext) -> None:
    """Train what the plan says and export it. See :func:`whet.engine.methods.jobs.run_job`."""
    train(context)
    context.leave_if_asked()
    measure_once(context)
    context.leave_if_asked()
    from ...export.of_run import export_run

    export_run(context)


def train(context: RunContext) -> Path:
    """The folder of the trained weights: trained now, from the last checkpoint on, or earlier."""
    torch.set_num_threads(context.plan.resolved.threads)
    transformers_logging.disable_progress_bar()
    trained = trained_folder(context)
    if not trained.is_dir():
        delete_incomplete(context.dir.checkpoints)
        _Training(context).run(trained)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return trained


def trained_folder(context: RunContext) -> Path:
    """Where the trained weights lie once they are whole: ``export/adapter``, or ``export/model`` in full."""
    full = context.recipe.adapter.kind == "none"
    return context.dir.export / ("model" if full else "adapter")


class _Training:
    """The objects of one attempt at training."""

    def __init__(self, context: RunContext) -> None:
        self.context, self.recipe, self.plan = context, context.recipe, context.plan
        context.summary.pop(PAUSED_BY, None)
        self.resolved = context.plan.resolved
        self.handle = self._load()
        context.leave_if_asked()
        self.data = planned_tokens(context, self.handle.path)
        context.leave_if_asked()
        self.trainer, self.reporter = self._trainer()
        self.watching: Watching | None = None

    def run(self, trained: Path) -> None:
        """Train to the end (or to a request to stop) and save the weights at ``trained``."""
        checkpoint = last_complete(self.context.dir.checkpoints)
        if checkpoint is not None and self._is_finished(checkpoint):
            self.trainer.load_weights(checkpoint)
            self.trainer.state = read_state(checkpoint)
        else:
            self._look(checkpoint)
            self._train(checkpoint)
        if self.recipe.eval.early_stopping is not None:
            self._take_best()
        self._save(trained)
        self._summarise()

    def _load(self) -> ModelHandle:
        context, model = self.context, self.recipe.model
        context.emit(PhaseEvent(phase="load", detail=model.name))
        path, trusted = locate_base(context)
        files = files_of(self.plan, path)
        self._say([] if files is None else list(look_at(files)))
        trainee = load_trainee(self.plan, path, trusted)
        self.more_ends = trainee.more_ends
        context.emit(PhaseEvent(phase="load", detail=f"{FAST_PATH}{trainee.report}"))
        if not trainee.report.complete:
            context.emit(FindingEvent(finding=slow_parts(trainee.report)))
        return trainee.handle

    def _trainer(self) -> tuple[RunTrainer, StepReporter]:
        context, recipe, resolved = self.context, self.recipe, self.resolved
        optimizer, finding = usable_optimizer(resolved.optimizer, self.handle.device)
        if finding is not None:
            context.emit(FindingEvent(finding=finding))
        rows = open_rows(self.data.train)
        evaluated = open_rows(self.data.eval) if self.data.eval is not None else None
        recompute = program_of(self.handle.model) is None  # a program recomputes by itself
        trainer = RunTrainer(
            self.handle.model,
            training_arguments(recipe, resolved, context.dir.checkpoints, optimizer, recompute=recompute),
            emit=context.emit,
            keep=recipe.training.keep_checkpoints,
            cursor=cursor_of(self.plan),
            train_dataset=pack_rows(rows, resolved.max_length) if resolved.packing else rows,
            eval_dataset=evaluated,
            processing_class=self.handle.tokenizer,
            data_collator=PaddingCollator(self.handle.pad_id),
        )
        fast = trainer.fast is not None
        collate = PaddingFreeCollator() if fast else PaddingCollator(self.handle.pad_id)
        trainer.data_collator = trainer.eval_collator = collate
        program = program_of(self.handle.model)
        if program is not None and trainer.plain_reason is not None:
            program.report.count("steps", trainer.plain_reason)
            context.emit(FindingEvent(finding=slow_parts(program.report)))
        if trainer.fast is not None and resolved.schedule is not None:
            follow(trainer.fast, resolved.schedule)
        if resolved.packing:
            bins = PaddingFreeCollator(rows) if fast else PackingCollator(rows, self.handle.pad_id)
            trainer.data_collator = bins
        reporter = StepReporter(context.emit, trainer.stats)
        eval_every = resolved.eval_every if evaluated is not None else None
        trainer.add_callback(reporter)
        trainer.add_callback(Schedule(context, save_every=resolved.save_every, eval_every=eval_every))
        trainer.add_callback(
            HeldOut(
                context.emit,
                patience=recipe.eval.early_stopping,
                min_improvement=recipe.eval.min_improvement,
                sample=self._sample,
            )
        )
        return trainer, reporter

    def _say(self, findings: list[Finding]) -> None:
        """Emit findings before the first step; an error that is not accepted ends the run here."""
        for finding in findings:
            self.context.emit(FindingEvent(finding=finding))
        refuse(findings, self.recipe)

    def _look(self, checkpoint: Path | None) -> None:
        """What the checks see in the loaded model, a few rows and the checkpoint; the live ones take over."""
        rows = open_rows(self.data.train)
        found = look_at_loaded(first_facts(self.handle, self.plan, self.trainer, rows))
        if checkpoint is None:
            found += self_tests(self.trainer, rows)
        else:
            found += look_at_checkpoint(checkpoint, self.trainer.model, self.plan)
        self._say(found)
        watch = watch_run(self.context, self.handle, checkpoint)
        emit = self.context.emit
        self.watching = Watching(emit, watch, self.recipe, self.reporter, self.trainer)
        self.trainer.add_callback(self.watching)

    def _is_finished(self, checkpoint: Path) -> bool:
        state, section = read_state(checkpoint), self.recipe.eval
        early = should_stop_early(history(state), section.early_stopping, section.min_improvement)
        return early or state.global_step >= self.resolved.total_steps

    def _train(self, checkpoint: Path | None) -> None:
        has_eval = self.trainer.eval_dataset is not None
        if checkpoint is None:
            if has_eval:
                with out_of_memory_said(self.context):
                    self.trainer.evaluate()
            else:
                self._sample(0)
            if self.resolved.base_precision == "fp8":
                self.context.emit(FindingEvent(finding=fp8_finding(self.handle, open_rows(self.data.train))))
        self.context.leave_if_asked()
        detail = f"resuming from {checkpoint.name}" if checkpoint else ""
        total = self.resolved.total_steps
        self.context.emit(PhaseEvent(phase="train", detail=detail, total=total))
        with out_of_memory_said(self.context):
            self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        section = self.recipe.eval
        early = should_stop_early(
            history(self.trainer.state), section.early_stopping, section.min_improvement
        )
        if self.trainer.state.global_step < total and not early:
            self._say_why_paused()
            raise Stopped
        if not has_eval:
            self._sample(self.trainer.state.global_step)
        if self.reporter.measured_seconds > 0:
            rate = self.reporter.measured_tokens / self.reporter.measured_seconds
            record_rate(self.plan.model, self.resolved, rate)

    def _say_why_paused(self) -> None:
        """The finding that paused the run ends in its state and its last event."""
        reason = self.watching.reason if self.watching is not None else None
        if reason is not None:
            self.context.summary[PAUSED_BY] = f"{reason.id}: {reason.title}"
            self.context.update(summary=self.context.summary)

    def _sample(self, step: int) -> None:
        recipe, context = self.recipe, self.context
        if not recipe.sampling.prompts:
            return
        context.emit(PhaseEvent(phase="sample", detail=f"step {step}"))
        chat = self.data.report.template is not None
        seed = recipe.training.seed
        for answer in answers(self.handle, recipe.sampling, chat=chat, system=recipe.data.system, seed=seed):
            said = SampleEvent(step=step, prompt=answer.prompt, answer=answer.text, stopped=answer.stopped)
            context.emit(said)

    def _take_best(self) -> None:
        """Go back to the weights of the lowest held-out loss, and let them have the last word in samples."""
        best = best_of(history(self.trainer.state))
        if best is not None and best.step != self.trainer.state.global_step:
            self.trainer.load_weights(step_folder(self.context.dir.checkpoints, best.step))
            self._sample(best.step)

    def _save(self, trained: Path) -> None:
        """Write the weights and the tokenizer with the template in force; they appear whole, by rename."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        if self.recipe.adapter.kind == "none":
            model = model.to(DTYPES.get(_short(self.plan.model.dtype), torch.float32))

        def write(folder: Path) -> None:
            save_weights(model, folder)
            self.handle.tokenizer.save_pretrained(folder)
            if self.more_ends:
                model.generation_config.save_pretrained(folder)
            if self.data.template_digest is not None:
                (folder / "template_digest").write_text(self.data.template_digest + "\n", encoding="utf-8")

        partial = trained.with_name(f".{trained.name}.partial")
        size = write_checkpoint(partial, write)
        (partial / MANIFEST).unlink()
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


def pack_rows(rows: Dataset, capacity: int) -> Dataset:
    """One data set row for each packed sequence: the numbers of the token rows in it."""
    lengths = pc.list_value_length(rows.data.column("input_ids")).to_pylist()
    return Dataset.from_dict({"rows": pack(lengths, capacity)})


def _short(dtype: str) -> str:
    return {"bfloat16": "bf16", "float16": "fp16"}.get(dtype, "fp32")
