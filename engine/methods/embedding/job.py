"""Training an embedding model as a run: pairs in, a folder that sentence-transformers loads out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset
from peft import PeftModel
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.base.training_args import BatchSamplers

from ...checks.embeddings import look_at_vectors
from ...checks.live import Watch, Watched
from ...models.fast_path import Keep, program_of
from ...models.fast_path.encoders import apply_fast_embedder
from ...models.loading import DTYPES, stored_dtype
from ...recipe import EmbeddingSection
from ...runs.context import RunContext
from ...runs.events import FindingEvent, PhaseEvent
from .. import training
from ..arguments import shared_arguments
from ..earlier import earlier_events
from ..optimizers import usable_optimizer
from ..resuming import cursor_of, look_at_checkpoint
from ..sft.arguments import checkpointing
from ..sft.loading import locate_base, planned_tokens
from ..watching import Watching
from .first_look import first_texts, kept_vectors, refusal
from .loading import device_of, load_embedder
from .losses import build_loss
from .retrieval import retrieval_of, shown
from .trainer import EmbeddingTrainer, save_embedder, whole_in


def run_embedding(context: RunContext) -> None:
    """Train what the plan says and export it. See :func:`whet.engine.methods.jobs.run_job`."""
    training.run_method(context, EmbeddingTraining)


class EmbeddingTraining(training.Training):
    """The objects of one attempt."""

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        assert isinstance(self.recipe.method, EmbeddingSection)
        self.section = self.recipe.method
        self.model = self._load()
        context.leave_if_asked()
        self.data = planned_tokens(context, self.plan.model.path)
        context.leave_if_asked()
        self.trainer = self._trainer()
        self.report(evaluates=self.data.eval is not None)

    def _load(self) -> SentenceTransformer:
        self.context.emit(PhaseEvent(phase="load", detail=self.recipe.model.name))
        self.base = locate_base(self.context)
        model = load_embedder(self.plan, *self.base)
        encoder: Any = model[0].model
        self.fused = apply_fast_embedder(encoder, DTYPES[self.resolved.compute_dtype])
        decoder = program_of(encoder)
        if decoder is not None and self.resolved.gradient_checkpointing:  # encoders look at their layers
            decoder.keep = [Keep(attention=False, mlp=False)] * len(decoder.layers)
        return model

    def _trainer(self) -> EmbeddingTrainer:
        context, section = self.context, self.section
        optimizer, finding = usable_optimizer(self.resolved.optimizer, device_of(self.model))
        if finding is not None:
            context.emit(FindingEvent(finding=finding))
        layout = self.data.report.format.other
        assert layout is not None
        rows = open_table(self.data.train)
        held_out = open_table(self.data.eval) if self.data.eval is not None else None
        evaluator = None
        if held_out is not None and section.retrieval:
            evaluator = retrieval_of(held_out, self.model.prompts, self.recipe.eval.batch_size)
        trainer = EmbeddingTrainer(
            self.model,
            embedding_arguments(self, optimizer, layout),
            emit=context.emit,
            keep=self.recipe.training.keep_checkpoints,
            cursor=cursor_of(self.plan),
            train_dataset=rows,
            eval_dataset=held_out,
            loss=build_loss(self.model, section, layout),
            evaluator=evaluator,
        )
        if trainer.plain_reason is not None and self.fused.complete:
            self.fused.count("steps", trainer.plain_reason)
        self.say_fused(self.fused)
        return trainer

    def look(self, checkpoint: Path | None) -> None:
        """Whether a checkpoint is one of this run; then the live checks take over."""
        encoder = self.model[0].model
        if checkpoint is not None and isinstance(encoder, PeftModel):
            self.say(look_at_checkpoint(checkpoint, encoder, self.plan))
        if checkpoint is None:
            self._compare()
        watched = Watched(recipe=self.recipe, resolved=self.resolved, vocabulary=2, chats=False)
        watch = Watch(watched, earlier_events(self.context, checkpoint))
        self.watching = Watching(self.context.emit, watch, self.recipe, self.reporter, self.trainer)
        self.trainer.add_callback(self.watching)

    def _compare(self) -> None:
        """L10: whether the fresh model embeds as its folder does."""
        folder, trusted = self.base
        if (reason := refusal(self.plan, folder)) is not None:
            detail = f"not compared with plain sentence-transformers: {reason}"
            self.context.emit(PhaseEvent(phase="load", detail=detail))
            return
        texts = first_texts(open_table(self.data.train))
        self.say(look_at_vectors(kept_vectors(self.model, self.plan, folder, trusted, texts)))

    def shown(self, metrics: dict[str, float]) -> dict[str, float]:
        """Retrieval among the held-out rows."""
        return shown(metrics)

    def write(self, folder: Path) -> None:
        """Adapter, or whole model, with all modules."""
        if self.recipe.adapter.kind == "none":
            whole_in(self.model, stored_dtype(self.plan.model.dtype))
        save_embedder(self.model, folder)


def embedding_arguments(run: EmbeddingTraining, optimizer: str, layout: str) -> Any:
    """sentence-transformers' configuration."""
    recipe, resolved = run.recipe, run.resolved
    prompts = run.model.prompts
    columns = {"anchor": prompts.get("query"), "positive": prompts.get("document")}
    sampler = BatchSamplers.BATCH_SAMPLER
    if layout == "labelled":
        sampler = BatchSamplers.GROUP_BY_LABEL
    elif run.section.no_duplicates and layout in ("pairs", "triplets"):
        sampler = BatchSamplers.NO_DUPLICATES
    return SentenceTransformerTrainingArguments(
        **shared_arguments(recipe, resolved, run.context.dir.checkpoints, optimizer),
        **checkpointing(resolved.gradient_checkpointing),
        batch_sampler=sampler,
        prompts={name: text for name, text in columns.items() if text},
    )


def open_table(path: Path) -> Dataset:
    """Stored rows; a label becomes the number of its class."""
    rows = Dataset.from_file(str(path)).remove_columns(["row"])
    if "label" in rows.column_names:
        names = sorted(rows.unique("label"))
        rows = rows.cast_column("label", ClassLabel(names=names))
    return rows
