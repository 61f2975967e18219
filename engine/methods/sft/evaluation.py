"""Evaluation of a finished run: the base and the tuned model on the same rows and prompts.

The model is loaded as for training, with a fresh adapter that changes nothing: that is the base. Then the
trained weights are put in. So both are measured exactly as the run measured itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from ...export.held_out import held_out_rows, planned_rows
from ...models.loading import ModelHandle
from ...recipe import Recipe
from ...recipe_files import patched
from ...runs.context import RunContext
from ...runs.events import FAST_PATH, EvalEvent, PhaseEvent, SampleEvent
from ...runs.jobs import EvaluateJob
from ...runs.store import RunStore, trained_weights
from ..memory_errors import out_of_memory_said
from ..sampling import answers
from .arguments import training_arguments
from .collation import PaddingCollator
from .loading import load_trainee, locate_base, open_rows, planned_tokens, prepare_tokens
from .packed_steps import PaddingFreeCollator
from .run_trainer import RunTrainer

ASKED = 3
"""Prompts taken from the rows where none are given."""


def evaluate_run(context: RunContext, job: EvaluateJob) -> None:
    """Measure what the parent trained; the numbers end in the job's summary.

    Losses are in nats per supervised token, perplexities their exponentials. Emits an evaluation and the
    answers of the base as step 0, and of the tuned model as the parent's last step.

    Raises:
        Stopped: the job ended on request.
        WhetError: ``export.untrained``; those of loading a model and of preparing data.
    """
    assert job.parent is not None
    parent = RunStore(context.dir.path.parent).get(job.parent)
    trained = trained_weights(parent)
    torch.set_num_threads(context.plan.resolved.threads)
    transformers_logging.disable_progress_bar()
    evaluation = _Evaluation(context, job)
    evaluation.measure("base", 0)
    evaluation.trainer.load_weights(trained)
    evaluation.measure("tuned", max(1, parent.read_state().step))


@dataclass(frozen=True)
class _Rows:
    """Tokens to measure on, and the recipe that they come from."""

    recipe: Recipe
    tokens: Dataset
    chat: bool


class _Evaluation:
    """The objects of one evaluation."""

    def __init__(self, context: RunContext, job: EvaluateJob) -> None:
        self.context, self.job = context, job
        self.handle = self._load()
        context.leave_if_asked()
        self.rows = self._rows()
        self.prompts = job.prompts or self._prompts()
        self.trainer = self._trainer()

    def measure(self, name: str, step: int) -> None:
        """Loss and answers of the weights that are in the model now."""
        context = self.context
        self.trainer.state.global_step = step
        self.progress.begin(name)
        with out_of_memory_said(context):
            metrics = self.trainer.evaluate()
        loss, supervised = metrics["eval_loss"], int(metrics["eval_supervised_tokens"])
        event = EvalEvent(
            step=step,
            loss=loss,
            supervised_tokens=supervised,
            seconds=metrics["eval_runtime"],
            best=False,
        )
        context.emit(event)
        context.summary |= {f"{name}_loss": loss, f"{name}_perplexity": perplexity(loss)}
        context.summary |= {"rows": len(self.rows.tokens), "supervised_tokens": supervised}
        self._answer(name, step)

    def _answer(self, name: str, step: int) -> None:
        context, recipe = self.context, self.context.recipe
        if not self.prompts:
            return
        context.emit(PhaseEvent(phase="sample", detail=name, total=len(self.prompts)))
        said = answers(
            self.handle,
            recipe.sampling,
            chat=self.rows.chat,
            system=recipe.data.system,
            seed=recipe.training.seed,
            prompts=self.prompts,
        )
        for answer in said:
            context.leave_if_asked()
            context.emit(
                SampleEvent(step=step, prompt=answer.prompt, answer=answer.text, stopped=answer.stopped)
            )

    def _load(self) -> ModelHandle:
        context, model = self.context, self.context.recipe.model
        context.emit(PhaseEvent(phase="load", detail=model.name))
        trainee = load_trainee(context.plan, *locate_base(context))
        context.emit(PhaseEvent(phase="load", detail=f"{FAST_PATH}{trainee.report}"))
        return trainee.handle

    def _rows(self) -> _Rows:
        job, path = self.job, self.handle.path
        recipe = self.context.plan.data_recipe()
        if job.data is None:
            data = planned_tokens(self.context, path)
            file = data.eval
        else:
            recipe = recipe_of(recipe, job.data, job.max_rows)
            data = prepare_tokens(self.context, recipe, path)
            file = data.train
        assert file is not None  # a run without held-out rows is refused before the job is made
        tokens = open_rows(file)
        if job.max_rows is not None:
            tokens = tokens.select(range(min(job.max_rows, len(tokens))))
        return _Rows(recipe, tokens, chat=data.report.template is not None)

    def _prompts(self) -> list[str]:
        """First questions of a few rows; none of rows that are not conversations."""
        if self.job.data is None:
            rows = planned_rows(self.context.plan, self.handle.path)
        else:
            rows = held_out_rows(self.rows.recipe, self.handle.path)
        asked = [
            message["content"]
            for row in rows
            for message in (row.get("messages") or [])[:2]
            if message["role"] == "user"
        ]
        return list(dict.fromkeys(asked))[:ASKED]

    def _trainer(self) -> RunTrainer:
        context, pad = self.context, PaddingCollator(self.handle.pad_id)
        trainer = RunTrainer(
            self.handle.model,
            training_arguments(
                context.recipe, context.plan.resolved, context.dir.checkpoints, "adamw", recompute=False
            ),
            emit=context.emit,
            keep=1,
            train_dataset=self.rows.tokens,
            eval_dataset=self.rows.tokens,
            processing_class=self.handle.tokenizer,
            data_collator=pad,
        )
        trainer.data_collator = trainer.eval_collator = (
            PaddingFreeCollator() if trainer.fast is not None else pad
        )
        batches = math.ceil(len(self.rows.tokens) / context.recipe.eval.batch_size)
        self.progress = _Progress(context, batches)
        trainer.add_callback(self.progress)
        return trainer


class _Progress(TrainerCallback):
    """Says how far an evaluation is, at whole percents, and leaves it when asked."""

    def __init__(self, context: RunContext, batches: int) -> None:
        self.context, self.batches = context, batches
        self.begin("")

    def begin(self, name: str) -> None:
        self.name, self.done, self.percent = name, 0, 0

    def on_prediction_step(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.context.leave_if_asked()
        self.done += 1
        percent = 100 * self.done // self.batches
        if percent > self.percent:
            self.percent = percent
            self.context.emit(PhaseEvent(phase="eval", detail=self.name, done=self.done, total=self.batches))


def recipe_of(recipe: Recipe, source: str, max_rows: int | None) -> Recipe:
    """The same way of reading rows, for rows from elsewhere; all of them count, so none is dropped."""
    patch: dict[str, Any] = {
        "data.train": source,
        "data.eval": None,
        "data.eval_fraction": 0.0,
        "data.drop": [],
        "data.max_rows": max_rows,
    }
    trained_on = recipe.data.train
    if source not in ([trained_on] if isinstance(trained_on, str) else trained_on):
        patch |= {"data.revision": None, "data.subset": None}
    return patched(recipe, patch)


def perplexity(loss: float) -> float:
    """``exp(loss)``; infinite where that is no number any more."""
    return math.exp(loss) if loss < 700 else math.inf
