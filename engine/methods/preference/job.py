"""Preference training as a run: compared or rated answers in, an adapter that plain PEFT loads out."""

from __future__ import annotations

import copy
from typing import Any

from ...errors import WhetError
from ...models.fast_path import program_of
from ...recipe import PreferenceSection
from ...runs.context import RunContext
from ...runs.events import FindingEvent
from .. import training
from ..arguments import shared_arguments
from ..language_models import AnswerTraining
from ..optimizers import usable_optimizer
from ..resuming import cursor_of
from ..sft.arguments import checkpointing
from ..sft.scheduled import follow_schedule
from .losses import trainer_of
from .trainers import LikelihoodTrainer, RatedCollator, compared_collator, open_answers

SHOWN = ("rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected", "kl")
"""Of TRL's metrics. A reward is beta times how much likelier an answer became than it is to the reference."""


def run_preference(context: RunContext) -> None:
    """Train what the plan says and export it. See :func:`whet.engine.methods.jobs.run_job`."""
    training.run_method(context, PreferenceTraining)


class PreferenceTraining(AnswerTraining):
    """The objects of one attempt."""

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        assert isinstance(self.recipe.method, PreferenceSection)
        self.section = self.recipe.method
        self.layout = self.plan.data.report.format.name
        self.loss = self.section.loss_of(self.layout)
        self.load()
        self.handle.model.config.use_cache = False
        self.trainer = self._trainer()
        self.report(evaluates=self.data.eval is not None)

    def _trainer(self) -> LikelihoodTrainer:
        context, recipe, handle = self.context, self.recipe, self.handle
        optimizer, finding = usable_optimizer(self.resolved.optimizer, handle.device)
        if finding is not None:
            context.emit(FindingEvent(finding=finding))
        shared = shared_arguments(recipe, self.resolved, context.dir.checkpoints, optimizer)
        program = program_of(handle.model)
        shared |= checkpointing(self.resolved.gradient_checkpointing and program is None)
        length = self.resolved.max_length
        kind, arguments = trainer_of(
            self.section, self.layout, shared, length, dropout=recipe.adapter.dropout > 0
        )
        more: dict[str, Any] = {}
        if self.resolved.second_copy:
            more["ref_model"] = copy.deepcopy(handle.model).requires_grad_(False).eval()
        rated = self.layout == "ratings"
        trainer = kind(
            handle.model,
            args=arguments,
            emit=context.emit,
            keep=recipe.training.keep_checkpoints,
            cursor=cursor_of(self.plan),
            train_dataset=open_answers(self.data.train),
            eval_dataset=open_answers(self.data.eval) if self.data.eval is not None else None,
            processing_class=handle.tokenizer,
            data_collator=RatedCollator(handle.pad_id, length) if rated else compared_collator(handle.pad_id),
            **more,
        )
        self._recompute(trainer)
        self.say_fused(self.fused)
        return trainer

    def _recompute(self, trainer: LikelihoodTrainer) -> None:
        """By the fast path where steps run there, as the planner chose; else by transformers.

        Raises:
            WhetError: ``preference.head``: TRL's own head multiplies with dense weights.
        """
        program, resolved = program_of(self.handle.model), self.resolved
        if program is not None and resolved.schedule is not None:
            follow_schedule(program, resolved.schedule)
        if trainer.plain_reason is not None:
            self.fused.count("steps", trainer.plain_reason)
            for name, value in checkpointing(resolved.gradient_checkpointing).items():
                setattr(trainer.args, name, value)  # read when training begins
        if resolved.head_precision != "16bit" and (program is None or trainer.plain_reason is not None):
            raise WhetError(
                "preference.head",
                f"model.head_precision={self.resolved.head_precision} needs the fast path, and this model is "
                f"not on it: {self.fused}.",
                "Set model.head_precision=16bit.",
            )

    def shown(self, metrics: dict[str, float]) -> dict[str, float]:
        """Rewards of the held-out answers."""
        return {name: metrics[f"eval_{name}"] for name in SHOWN if f"eval_{name}" in metrics}
