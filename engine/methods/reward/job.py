"""Training a reward model as a run: compared answers in, a model with a head of one score out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from ...checks.live import Watch, Watched
from ...data.chat_templates.renderer import strip_generation_tags
from ...data.tokenization import template_source
from ...models.fast_path import apply_fast_path, program_of
from ...models.loading import DTYPES, stored_dtype
from ...recipe import RewardSection
from ...runs.context import RunContext
from ...runs.events import FindingEvent, PhaseEvent
from .. import training
from ..arguments import shared_arguments
from ..classification.loading import Headed, load_headed
from ..classification.trainer import save_headed
from ..earlier import earlier_events
from ..optimizers import usable_optimizer
from ..preference.trainers import AnswerTrainer, open_answers
from ..resuming import cursor_of, look_at_checkpoint
from ..sft.arguments import checkpointing
from ..sft.loading import locate_base, planned_tokens
from ..sft.scheduled import follow_schedule
from ..watching import Watching

SHOWN = ("accuracy", "margin", "mean_reward")
"""Of TRL's metrics: how often the chosen answer scores higher, by how much, and the mean of all scores."""


def run_reward(context: RunContext) -> None:
    """Train what the plan says and export it. See :func:`whet.engine.methods.jobs.run_job`."""
    training.run_method(context, RewardTraining)


class ScoreTrainer(AnswerTrainer, RewardTrainer):
    """TRL's, on tokenised rows."""


class ScoreCollator:
    """Whole conversations, first those with the chosen answer, then those with the rejected one."""

    def __init__(self, pad_id: int) -> None:
        self.collate = DataCollatorForPreference(pad_token_id=pad_id)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch of stored rows, as the trainer takes it."""
        names = ("chosen_ids", "rejected_ids")
        batch: dict[str, Any] = self.collate(
            [{name: row["prompt_ids"] + row[name] for name in names} for row in rows]
        )
        return batch


class RewardTraining(training.Training):
    """The objects of one attempt."""

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        assert isinstance(self.recipe.method, RewardSection)
        self.section = self.recipe.method
        self.headed = self._load()
        context.leave_if_asked()
        self.data = planned_tokens(context, self.plan.model.path)
        context.leave_if_asked()
        self.trainer = self._trainer()
        self.report(evaluates=self.data.eval is not None)

    def _load(self) -> Headed:
        self.context.emit(PhaseEvent(phase="load", detail=self.recipe.model.name))
        path, trusted = locate_base(self.context)
        auto = AutoModelForSequenceClassification
        headed = load_headed(self.plan, path, auto, ["reward"], task="SEQ_CLS", trust_remote_code=trusted)
        dtype = DTYPES[self.resolved.compute_dtype]
        self.fused = apply_fast_path(headed.model, dtype, fp8=())
        named = self.plan.data_recipe().data.template
        if named is not None:
            headed.tokenizer.chat_template = strip_generation_tags(template_source(named, None) or "")
        return headed

    def _trainer(self) -> ScoreTrainer:
        context, recipe = self.context, self.recipe
        optimizer, finding = usable_optimizer(self.resolved.optimizer, self.headed.device)
        if finding is not None:
            context.emit(FindingEvent(finding=finding))
        program = program_of(self.headed.model)
        if program is not None and self.resolved.schedule is not None:
            follow_schedule(program, self.resolved.schedule)
        self.say_fused(self.fused)
        recompute = self.resolved.gradient_checkpointing and program is None
        arguments = RewardConfig(
            **shared_arguments(recipe, self.resolved, context.dir.checkpoints, optimizer),
            **checkpointing(recompute),
            remove_unused_columns=False,
            max_length=None,
            disable_dropout=recipe.adapter.dropout == 0,
            center_rewards_coefficient=self.section.center,
        )
        return ScoreTrainer(
            self.headed.model,
            args=arguments,
            emit=context.emit,
            keep=recipe.training.keep_checkpoints,
            cursor=cursor_of(self.plan),
            train_dataset=open_answers(self.data.train),
            eval_dataset=open_answers(self.data.eval) if self.data.eval is not None else None,
            processing_class=self.headed.tokenizer,
            data_collator=ScoreCollator(self.headed.tokenizer.pad_token_id),
        )

    def look(self, checkpoint: Path | None) -> None:
        """Whether a checkpoint is one of this run; then the live checks take over."""
        if checkpoint is not None and isinstance(self.headed.model, PeftModel):
            self.say(look_at_checkpoint(checkpoint, self.headed.model, self.plan))
        watched = Watched(self.recipe, self.resolved, vocabulary=2, chats=False)
        watch = Watch(watched, earlier_events(self.context, checkpoint))
        self.watching = Watching(self.context.emit, watch, self.recipe, self.reporter, self.trainer)
        self.trainer.add_callback(self.watching)

    def shown(self, metrics: dict[str, float]) -> dict[str, float]:
        """How held-out answers are told apart."""
        return {name: metrics[f"eval_{name}"] for name in SHOWN if f"eval_{name}" in metrics}

    def write(self, folder: Path) -> None:
        """Adapter and head, or the whole model, with the tokenizer and its template."""
        model = self.headed.model
        if self.recipe.adapter.kind == "none":
            model = model.to(stored_dtype(self.plan.model.dtype))
        save_headed(model, self.headed.tokenizer, self.headed.config, folder)
