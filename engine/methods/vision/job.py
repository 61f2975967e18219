"""Training a vision-language model as a run: conversations with images in, an adapter that PEFT loads out."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset
from transformers import TrainingArguments

from ...recipe import VisionSection
from ...runs.context import RunContext
from ...runs.events import FindingEvent, PhaseEvent
from .. import training
from ..arguments import shared_arguments
from ..language_models import look_at_language_model, write_language_model
from ..optimizers import usable_optimizer
from ..resuming import cursor_of
from ..sft.arguments import checkpointing
from ..sft.loading import locate_base, planned_tokens
from ..watching import Watching
from .inputs import StoredCollator
from .loading import Seeing, copy_processor, load_planned
from .sampling import read_prompts, sample_events
from .trainer import VisionTrainer


def run_vision(context: RunContext) -> None:
    """Train what the plan says and export it. See :func:`whet.engine.methods.jobs.run_job`."""
    training.run_method(context, VisionTraining)


class VisionTraining(training.Training):
    """The objects of one attempt."""

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        assert isinstance(self.recipe.method, VisionSection)
        self.section = self.recipe.method
        self.seeing = self._load()
        self.asked = read_prompts(self.recipe, self.seeing.encoder)
        context.leave_if_asked()
        self.data = planned_tokens(context, self.seeing.handle.path)
        context.leave_if_asked()
        self.trainer = self._trainer()
        self.report(evaluates=self.data.eval is not None)

    def _load(self) -> Seeing:
        self.context.emit(PhaseEvent(phase="load", detail=self.recipe.model.name))
        path, trusted = locate_base(self.context)
        return load_planned(self.plan, path, trusted)

    def _trainer(self) -> VisionTrainer:
        context, recipe, handle = self.context, self.recipe, self.seeing.handle
        optimizer, finding = usable_optimizer(self.resolved.optimizer, handle.device)
        if finding is not None:
            context.emit(FindingEvent(finding=finding))
        arguments = TrainingArguments(
            **shared_arguments(recipe, self.resolved, context.dir.checkpoints, optimizer),
            **checkpointing(self.resolved.gradient_checkpointing),
            remove_unused_columns=False,
        )
        sides = (self.section.image_min, self.section.image_max)
        return VisionTrainer(
            handle.model,
            arguments,
            emit=context.emit,
            keep=recipe.training.keep_checkpoints,
            cursor=cursor_of(self.plan),
            train_dataset=open_images(self.data.train),
            eval_dataset=open_images(self.data.eval) if self.data.eval is not None else None,
            processing_class=handle.tokenizer,
            data_collator=StoredCollator(self.seeing.inputs, handle.pad_id, sides),
        )

    def look(self, checkpoint: Path | None) -> None:
        """What the checks see in the loaded model and the checkpoint; the live ones take over."""
        watch = look_at_language_model(self, self.seeing.handle, self.data, checkpoint)
        self.watching = Watching(self.context.emit, watch, self.recipe, self.reporter, self.trainer)
        self.trainer.add_callback(self.watching)

    def sample(self, step: int) -> None:
        """Answer the recipe's prompts, images in them included."""
        sample_events(self.context, self.seeing, self.asked, step)

    def shown(self, metrics: dict[str, float]) -> dict[str, float]:
        """How many of the held-out answers' tokens are predicted right."""
        return {"token_accuracy": metrics["eval_token_accuracy"]} if "eval_token_accuracy" in metrics else {}

    def write(self, folder: Path) -> None:
        """The weights, the tokenizer and what prepares images."""
        write_language_model(self, self.seeing.handle, self.data, self.seeing.more_ends, folder)
        copy_processor(self.seeing.handle.path, folder)


def open_images(path: Path) -> Dataset:
    """Stored rows: input_ids, labels, images (path, data, digest)."""
    return Dataset.from_file(str(path)).remove_columns(["row"])
