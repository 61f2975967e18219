"""Trainings that are watched: whole runs, and trainers with one part exchanged for a faulty one."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from datasets import Dataset
from support.tiny_models import TEXT
from support.tiny_runs import create_run, next_attempt
from trl import SFTConfig

from whet.engine.checks.live import Watch, Watched
from whet.engine.errors import WhetError
from whet.engine.findings import Finding
from whet.engine.methods.callbacks import StepReporter
from whet.engine.methods.sft.collation import PaddingCollator
from whet.engine.methods.sft.trainer import SupervisedTrainer
from whet.engine.methods.training import Training
from whet.engine.methods.watching import Watching
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.run_view import view_run
from whet.engine.runs.context import RunContext, Stopped
from whet.engine.runs.events import Event, FindingEvent, StepEvent
from whet.engine.runs.store import RunDir


def token_rows(tokenizer: Any, count: int = 16) -> Dataset:
    """Lines of the tiny text, all of their tokens supervised, of uneven length."""
    lines = [line for line in TEXT.read_text(encoding="utf-8").splitlines() if len(line.split()) > 3]
    ids = [tokenizer.encode(line)[: 12 + 5 * (number % 4)] for number, line in enumerate(lines[:count])]
    return Dataset.from_list([{"input_ids": one, "labels": one} for one in ids]).with_format("numpy")


def plain_trainer(
    handle: Any,
    output: Path,
    *,
    collate: Any = None,
    kind: type[SupervisedTrainer] = SupervisedTrainer,
    **settings: Any,
) -> tuple[Any, Dataset]:
    """A trainer of a loaded model and its rows; ``settings`` are SFTConfig's or the trainer's own."""
    rows = token_rows(handle.tokenizer)
    own = ("compute_loss_func", "compute_metrics", "eval_dataset", "emit", "keep", "train_dataset")
    arguments: dict[str, Any] = {
        "output_dir": str(output),
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "bf16": False,
        "use_cpu": True,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "remove_unused_columns": False,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    } | {key: value for key, value in settings.items() if key not in own}
    trainer = kind(
        handle.model,
        SFTConfig(**arguments),
        processing_class=handle.tokenizer,
        data_collator=collate or PaddingCollator(handle.pad_id),
        **{"train_dataset": rows} | {key: value for key, value in settings.items() if key in own},
    )
    return trainer, rows


class StopAfter(RunContext):
    """Asks to stop once a step was seen."""

    last: int

    @classmethod
    def of(cls, run: RunDir, step: int) -> StopAfter:
        context = next_attempt(run)
        stopping = cls(run, context.attempt, context._events)
        stopping.last = step
        return stopping

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, StepEvent) and event.step == self.last:
            self.signals = 1


def findings_of(run: RunDir) -> list[Finding]:
    """What `whet show` would list: the plan's findings and the worker's."""
    return view_run(run).findings


def attempt(
    run: RunDir, stop_after: int | None = None, method: Callable[[RunContext], Training] | None = None
) -> str:
    """One attempt at training (by default supervised); how it ended: ``finished``, ``stopped`` or an error's
    code."""
    from whet.engine.methods.sft.job import SFTTraining
    from whet.engine.methods.training import train

    context = next_attempt(run) if stop_after is None else StopAfter.of(run, stop_after)
    try:
        train(context, method or SFTTraining)
    except Stopped:
        context.close("stopped")
        return "stopped"
    except WhetError as error:
        context.close("failed", error)
        return error.code
    context.close("finished")
    return "finished"


def trained(recipe: Recipe) -> list[Finding]:
    """Findings of a whole training."""
    run = create_run(recipe)
    attempt(run)
    return findings_of(run)


def watched(trainer: SupervisedTrainer, recipe: Recipe) -> list[Finding]:
    """Findings of the live checks while a trainer trains."""
    plan = make_plan(recipe)
    found: list[Finding] = []

    def emit(event: Event) -> None:
        if isinstance(event, FindingEvent):
            found.append(event.finding)

    reporter = StepReporter(emit, trainer.stats)
    watch = Watch(Watched(recipe, plan.resolved, plan.model.vocab_size, chats=True))
    trainer.add_callback(reporter)
    trainer.add_callback(Watching(emit, watch, recipe, reporter, trainer))
    trainer.train()
    return found


@contextmanager
def with_memory_of(more: int) -> Iterator[None]:
    """This process may map so many bytes more than it has, while the context lasts."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
