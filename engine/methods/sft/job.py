"""Supervised fine-tuning as a run's training: its model on the fast path, its tokens, its checks."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
from datasets import Dataset

from ...checks.loaded import look_at_loaded
from ...checks.weights import look_at
from ...data.packing import pack
from ...models.fast_path import program_of, slow_parts
from ...models.loading import ModelHandle
from ...runs.context import RunContext
from ...runs.events import FindingEvent, PhaseEvent
from .. import training
from ..language_models import write_language_model
from ..optimizers import usable_optimizer
from ..resuming import cursor_of, look_at_checkpoint
from ..sampling import sample_events
from ..watching import Watching
from .arguments import training_arguments
from .collation import PackingCollator, PaddingCollator
from .first_look import files_of, first_facts, watch_run
from .fp8_check import fp8_finding
from .loading import load_trainee, locate_base, open_rows, planned_tokens
from .packed_steps import PaddingFreeCollator
from .run_trainer import RunTrainer
from .scheduled import follow
from .self_tests import self_tests


def run_sft(context: RunContext) -> None:
    """Train what the plan says and export it. See :func:`whet.engine.methods.jobs.run_job`."""
    training.run_method(context, SFTTraining)


def train(context: RunContext) -> Path:
    """The folder of the trained weights, see :func:`whet.engine.methods.training.train`."""
    return training.train(context, SFTTraining)


class SFTTraining(training.Training):
    """The objects of one attempt at supervised fine-tuning."""

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self.handle = self._load()
        context.leave_if_asked()
        self.data = planned_tokens(context, self.handle.path)
        context.leave_if_asked()
        self.trainer = self._trainer()
        self.report(evaluates=self.data.eval is not None)

    def _load(self) -> ModelHandle:
        context, model = self.context, self.recipe.model
        context.emit(PhaseEvent(phase="load", detail=model.name))
        path, trusted = locate_base(context)
        files = files_of(self.plan, path)
        self.say([] if files is None else list(look_at(files)))
        trainee = load_trainee(self.plan, path, trusted)
        self.more_ends = trainee.more_ends
        self.say_fused(trainee.report)
        return trainee.handle

    def _trainer(self) -> RunTrainer:
        context, recipe, resolved = self.context, self.recipe, self.resolved
        optimizer, finding = usable_optimizer(
            resolved.optimizer, self.handle.device, in_shares=resolved.strategy == "fsdp"
        )
        if finding is not None:
            context.emit(FindingEvent(finding=finding))
        rows = open_rows(self.data.train)
        program = program_of(self.handle.model)
        recompute = program is None  # a program recomputes by itself
        trainer = RunTrainer(
            self.handle.model,
            training_arguments(recipe, resolved, context.dir.checkpoints, optimizer, recompute=recompute),
            emit=context.emit,
            keep=recipe.training.keep_checkpoints,
            cursor=cursor_of(self.plan),
            train_dataset=pack_rows(rows, resolved.max_length) if resolved.packing else rows,
            eval_dataset=open_rows(self.data.eval) if self.data.eval is not None else None,
            processing_class=self.handle.tokenizer,
            data_collator=PaddingCollator(self.handle.pad_id),
        )
        fast = trainer.fast is not None
        collate = PaddingFreeCollator() if fast else PaddingCollator(self.handle.pad_id)
        trainer.data_collator = trainer.eval_collator = collate
        if program is not None and trainer.plain_reason is not None:
            program.report.count("steps", trainer.plain_reason)
            context.emit(FindingEvent(finding=slow_parts(program.report)))
        if trainer.fast is not None and resolved.schedule is not None:
            follow(trainer.fast, resolved.schedule)
        if resolved.packing:
            bins = PaddingFreeCollator(rows) if fast else PackingCollator(rows, self.handle.pad_id)
            trainer.data_collator = bins
        return trainer

    def look(self, checkpoint: Path | None) -> None:
        """What the checks see in the loaded model, a few rows and the checkpoint; the live ones take over."""
        rows = open_rows(self.data.train)
        found = look_at_loaded(first_facts(self.handle, self.plan, self.trainer, rows))
        if checkpoint is None:
            found += self_tests(self.trainer, rows)
        else:
            found += look_at_checkpoint(checkpoint, self.trainer.model, self.plan)
        self.say(found)
        watch = watch_run(self.context, self.handle, checkpoint)
        emit = self.context.emit
        self.watching = Watching(emit, watch, self.recipe, self.reporter, self.trainer)
        self.trainer.add_callback(self.watching)

    def before_first_step(self) -> None:
        """How far an FP8 base is from the 16-bit one, on the run's own rows."""
        if self.resolved.base_precision == "fp8":
            self.context.emit(FindingEvent(finding=fp8_finding(self.handle, open_rows(self.data.train))))

    def sample(self, step: int) -> None:
        """Answer the recipe's prompts."""
        sample_events(
            self.context,
            self.handle,
            step,
            chat=self.data.report.template is not None,
            together=self.trainer.sharded,
        )

    def write(self, folder: Path) -> None:
        """The weights and the tokenizer with the template in force."""
        write_language_model(self, self.handle, self.data, self.more_ends, folder)


def pack_rows(rows: Dataset, capacity: int) -> Dataset:
    """One data set row for each packed sequence: the numbers of the token rows in it."""
    lengths = pc.list_value_length(rows.data.column("input_ids")).to_pylist()
    return Dataset.from_dict({"rows": pack(lengths, capacity)})
