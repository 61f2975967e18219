"""Training a reranker as a run: queries and documents in, a folder that CrossEncoder loads out."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset
from peft import PeftModel
from sentence_transformers.base.training_args import BatchSamplers
from sentence_transformers.cross_encoder.training_args import CrossEncoderTrainingArguments

from ...checks.live import Watch, Watched
from ...models.fast_path.encoders import apply_fast_encoder
from ...models.loading import DTYPES, stored_dtype
from ...recipe import RerankerSection
from ...runs.context import RunContext
from ...runs.events import FindingEvent, PhaseEvent
from .. import training
from ..arguments import shared_arguments
from ..earlier import earlier_events
from ..head_steps import with_steps
from ..optimizers import usable_optimizer
from ..resuming import cursor_of, look_at_checkpoint
from ..sft.arguments import checkpointing
from ..sft.loading import locate_base, planned_tokens
from ..watching import Watching
from .loading import device_of, load_reranker, sets_apart
from .losses import build_loss
from .ranking import ranking_of, shown
from .suiting import loss_name
from .trainer import RerankerTrainer, save_reranker


def run_reranker(context: RunContext) -> None:
    """Train what the plan says and export it. See :func:`whet.engine.methods.jobs.run_job`."""
    training.run_method(context, RerankerTraining)


class RerankerTraining(training.Training):
    """The objects of one attempt."""

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        assert isinstance(self.recipe.method, RerankerSection)
        self.section = self.recipe.method
        layout = self.plan.data.report.format.other
        assert layout is not None
        self.layout: str = layout
        self.loss = loss_name(self.section, layout)
        self.data = planned_tokens(context, self.plan.model.path)
        context.leave_if_asked()
        context.emit(PhaseEvent(phase="load", detail=self.recipe.model.name))
        path, trusted = locate_base(context)
        self.model = load_reranker(self.plan, path, trusted)
        fused = apply_fast_encoder(self.model[0].model, DTYPES[self.resolved.compute_dtype])
        if len(self.model) == 1 and not sets_apart(self.model):  # else a template writes the pair
            said = "this tokenizer sets nothing between query and document: end the queries with a line break"
            context.emit(PhaseEvent(phase="load", detail=said))
        context.leave_if_asked()
        self.trainer = self._trainer()
        self.say_fused(with_steps(fused, self.trainer))
        self.report(evaluates=self.data.eval is not None)

    def _trainer(self) -> RerankerTrainer:
        context, recipe = self.context, self.recipe
        optimizer, finding = usable_optimizer(self.resolved.optimizer, device_of(self.model))
        if finding is not None:
            context.emit(FindingEvent(finding=finding))
        held_out = self._rows(self.data.eval) if self.data.eval is not None else None
        evaluator = None
        if held_out is not None:
            evaluator = ranking_of(held_out, self.section.candidates, recipe.eval.batch_size)
        in_batch = self.loss.endswith("multiple_negatives")
        return RerankerTrainer(
            self.model,
            CrossEncoderTrainingArguments(
                **shared_arguments(recipe, self.resolved, context.dir.checkpoints, optimizer),
                **checkpointing(self.resolved.gradient_checkpointing),
                # A text twice in a batch would be its own negative.
                batch_sampler=BatchSamplers.NO_DUPLICATES if in_batch else BatchSamplers.BATCH_SAMPLER,
            ),
            emit=context.emit,
            keep=recipe.training.keep_checkpoints,
            cursor=cursor_of(self.plan),
            train_dataset=self._rows(self.data.train),
            eval_dataset=held_out,
            loss=build_loss(self.model, self.section, self.layout),
            evaluator=evaluator,
        )

    def _rows(self, path: Path) -> Dataset:
        return Dataset.from_file(str(path)).remove_columns(["row"])

    def look(self, checkpoint: Path | None) -> None:
        """Whether a checkpoint is one of this run; then the live checks take over."""
        encoder = self.model[0].model
        if checkpoint is not None and isinstance(encoder, PeftModel):
            self.say(look_at_checkpoint(checkpoint, encoder, self.plan))
        watched = Watched(self.recipe, self.resolved, vocabulary=2, chats=False)
        watch = Watch(watched, earlier_events(self.context, checkpoint))
        self.watching = Watching(self.context.emit, watch, self.recipe, self.reporter, self.trainer)
        self.trainer.add_callback(self.watching)

    def shown(self, metrics: dict[str, float]) -> dict[str, float]:
        """Ranking by the held-out queries."""
        return shown(metrics)

    def write(self, folder: Path) -> None:
        """Adapter and head, or the whole model."""
        if self.recipe.adapter.kind == "none":
            self.model.to(stored_dtype(self.plan.model.dtype))
        save_reranker(self.model, folder)
