"""Reinforcement learning from rewards as a run: prompts in, an adapter that plain PEFT loads out."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from datasets import Dataset

from ...errors import WhetError
from ...findings import Finding
from ...models.fast_path import program_of
from ...recipe import GRPOSection
from ...rewards.runner import Rewards
from ...runs.context import RunContext
from ...runs.events import FindingEvent, SampleEvent
from .. import training
from ..arguments import shared_arguments
from ..language_models import AnswerTraining
from ..optimizers import usable_optimizer
from ..resuming import cursor_of
from ..sampling import stop_ids
from ..sft.arguments import checkpointing
from ..sft.scheduled import follow_schedule
from .options import trainer_of
from .rollouts import Answer, Rollouts
from .trainers import GroupTrainer
from .watching import RewardWatching

SHOWINGS = 20
"""Times a run that answers are shown."""


def run_grpo(context: RunContext) -> None:
    """Train what the plan says and export it. See :func:`whet.engine.methods.jobs.run_job`."""
    training.run_method(context, GRPOTraining)


class GRPOTraining(AnswerTraining):
    """The objects of one attempt."""

    trainer: GroupTrainer
    watcher = RewardWatching

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        assert isinstance(self.recipe.method, GRPOSection)
        self.section = self.recipe.method
        self._refuse()
        self.rewards = Rewards(self.section.rewards, self.plan.folder, on_error=self.section.reward_errors)
        self.load()
        self.trainer = self._trainer()
        self.report(evaluates=self.data.eval is not None)

    def _refuse(self) -> None:
        """Raises WhetError ``grpo.head`` for a head whose weights the loss cannot read."""
        if self.resolved.head_precision != "16bit":
            raise WhetError(
                "grpo.head",
                f"model.head_precision={self.resolved.head_precision}: the loss multiplies with the head's "
                "weights themselves.",
                "Set model.head_precision=16bit.",
            )

    def _trainer(self) -> GroupTrainer:
        context, recipe, handle, section = self.context, self.recipe, self.handle, self.section
        optimizer, finding = usable_optimizer(self.resolved.optimizer, handle.device)
        if finding is not None:
            context.emit(FindingEvent(finding=finding))
        stops = stop_ids(handle.model, handle.tokenizer)
        turns = self.resolved.turns
        at_once = self.resolved.answers // turns if turns > 1 else None
        rollouts = Rollouts(handle, section, self.rewards, stops, at_once)
        shared = shared_arguments(recipe, self.resolved, context.dir.checkpoints, optimizer)
        shared |= checkpointing(self.resolved.gradient_checkpointing and program_of(handle.model) is None)
        kind, arguments = trainer_of(section, shared, rollouts.weights, dropout=recipe.adapter.dropout > 0)
        more: dict[str, Any] = {}
        if self.resolved.second_copy:
            more["reference"] = copy.deepcopy(handle.model).requires_grad_(False).eval()
        trainer = kind(
            handle.model,
            args=arguments,
            emit=context.emit,
            keep=recipe.training.keep_checkpoints,
            cursor=cursor_of(self.plan),
            train_dataset=open_prompts(self.data.train),
            eval_dataset=open_prompts(self.data.eval) if self.data.eval is not None else None,
            processing_class=handle.tokenizer,
            rollouts=rollouts,
            beta=section.beta,
            exchange=section.knobs.dynamic_sampling,
            show=self._show,
            **more,
        )
        self._recompute(trainer)
        self.say_fused(self.fused)
        return trainer

    def _recompute(self, trainer: GroupTrainer) -> None:
        """By the fast path where steps run there, as the planner chose; else by transformers."""
        program, resolved = program_of(self.handle.model), self.resolved
        if trainer.plain_reason is not None:
            self.fused.count("steps", trainer.plain_reason)
            for name, value in checkpointing(resolved.gradient_checkpointing).items():
                setattr(trainer.args, name, value)  # read when training begins
        elif program is not None and resolved.schedule is not None:
            follow_schedule(program, resolved.schedule)

    def run(self, trained: Path) -> None:
        """As the base class, with the rewards' process beside it."""
        with self.running():
            super().run(trained)

    def running(self) -> AbstractContextManager[Any]:
        """The rewards' process."""
        return self.trainer.rollouts.running()

    def shown(self, metrics: dict[str, float]) -> dict[str, float]:
        """Rewards of the held-out prompts' answers, and how these end."""
        names = ("reward", "length", "finished", *(f"rewards/{name}" for name in self.trainer.rollouts.names))
        return {name: metrics[f"eval_{name}"] for name in names if f"eval_{name}" in metrics}

    def _show(self, answers: Sequence[Answer]) -> None:
        """A few of a step's answers with their rewards; what rewards warned of is said once."""
        for warning in self.trainer.rollouts.new_warnings():
            self.context.emit(FindingEvent(finding=reward_warning(warning)))
        step = self.trainer.state.global_step
        if step % max(1, self.resolved.total_steps // SHOWINGS):
            return
        for answer in best_and_worst(answers, self.section.samples):
            values = zip(self.trainer.rollouts.names, answer.values, strict=True)
            rewards = {name: value for name, value in values if value is not None}
            self.context.emit(
                SampleEvent(
                    step=step,
                    prompt=last_question(answer.prompt),
                    answer=answer.text,
                    stopped=answer.finished,
                    rewards={"reward": answer.total, **rewards},
                )
            )


def best_and_worst(answers: Sequence[Answer], most: int) -> list[Answer]:
    """In turns, each to another prompt."""
    best_first = sorted(answers, key=lambda answer: -answer.total)
    chosen: dict[str, Answer] = {}
    for pair in zip(best_first, reversed(best_first), strict=True):
        for answer in pair:
            if len(chosen) < most:
                chosen.setdefault(answer.row["prompt"], answer)
    return list(chosen.values())


def open_prompts(path: Path) -> Dataset:
    """Stored rows: prompt_ids, and prompt and columns as JSON."""
    return Dataset.from_file(str(path)).remove_columns(["row"])


def last_question(prompt: str | list[dict[str, Any]]) -> str:
    """What was asked, in a line of its own."""
    if isinstance(prompt, str):
        return prompt
    content = prompt[-1]["content"]
    return content if isinstance(content, str) else json.dumps(content)


def reward_warning(text: str) -> Finding:
    """T06: a reward said something that is not an error."""
    return Finding(id="T06", severity="warning", title=f"{text[:1].upper()}{text[1:]}.", evidence={})
