"""Fine-tuning Whisper as a run: recordings and their texts in, a model that plain transformers loads out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import TrainingArguments

from ...checks.live import Watch, Watched
from ...data.transcripts import Transcripts
from ...models.adapters import save_weights
from ...models.loading import stored_dtype
from ...models.memory import BYTES
from ...recipe import SpeechSection
from ...runs.context import RunContext
from ...runs.events import FindingEvent, PhaseEvent, SampleEvent
from .. import training
from ..arguments import shared_arguments
from ..classification.trainer import cross_entropy
from ..earlier import earlier_events
from ..optimizers import usable_optimizer
from ..resuming import cursor_of, look_at_checkpoint
from ..sft.arguments import checkpointing
from ..sft.loading import locate_base, planned_tokens
from ..watching import Watching
from .collation import SoundCollator
from .errors import error_rates
from .loading import load_hearing
from .steps import fused
from .trainer import SpeechTrainer
from .writing import write_down

SHOWN = 3
"""Held-out rows whose texts an evaluation shows, right and written."""
ROOM = 16
"""Tokens that a text may have beyond twice the longest right one."""


def run_speech(context: RunContext) -> None:
    """Train what the plan says and export it. See :func:`whet.engine.methods.jobs.run_job`."""
    training.run_method(context, SpeechTraining)


class SpeechTraining(training.Training):
    """The objects of one attempt at a Whisper model."""

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        assert isinstance(self.recipe.method, SpeechSection)
        self.section = self.recipe.method
        self.heard: list[tuple[str, str]] = []
        self.heard_at = -1
        context.emit(PhaseEvent(phase="load", detail=self.recipe.model.name))
        path, _ = locate_base(context)
        self.hearing = load_hearing(self.plan, path)
        context.leave_if_asked()
        self.data = planned_tokens(context, path)
        context.leave_if_asked()
        backend: Any = self.hearing.tokenizer
        self.marks = Transcripts.of(path, backend.backend_tokenizer, self.section.task)
        self.collate = SoundCollator(self.hearing, self.marks)
        self.held_out = Dataset.from_file(str(self.data.eval)) if self.data.eval is not None else None
        self.trainer = self._trainer()
        self.trainer.choose_steps(self.collate, self.resolved.longest, self._graph_refusal())
        if self.hearing.device.type == "cuda":
            self.say_fused(fused(self.trainer.plain_reason, self.trainer.graph_reason))
        self.report(evaluates=self.held_out is not None)

    def _trainer(self) -> SpeechTrainer:
        context, recipe, resolved = self.context, self.recipe, self.resolved
        optimizer, finding = usable_optimizer(resolved.optimizer, self.hearing.device)
        if finding is not None:
            context.emit(FindingEvent(finding=finding))
        return SpeechTrainer(
            self.hearing.model,
            TrainingArguments(
                **shared_arguments(recipe, resolved, context.dir.checkpoints, optimizer)
                | {"dataloader_pin_memory": False},  # recordings are pinned as they are collated
                **checkpointing(resolved.gradient_checkpointing),
                remove_unused_columns=False,
                label_names=["labels"],
                prediction_loss_only=True,
            ),
            emit=context.emit,
            keep=recipe.training.keep_checkpoints,
            cursor=cursor_of(self.plan),
            train_dataset=Dataset.from_file(str(self.data.train)),
            eval_dataset=self.held_out,
            data_collator=self.collate,
            compute_loss_func=cross_entropy(),
            processing_class=self.hearing.tokenizer,
            measure=self.measure,
        )

    def _graph_refusal(self) -> str | None:
        """What a plan says against steps as CUDA graphs."""
        if self.resolved.gradient_checkpointing:
            return "activations are computed a second time, from random numbers kept on the host"
        if self.resolved.base_precision not in BYTES:
            return "rounded weights are expanded by a library of its own"
        return None

    def measure(self) -> dict[str, float]:
        """Error rates on the first held-out rows."""
        if self.held_out is None or not self.section.error_rows:
            return {}
        rows = self.held_out.select(range(min(len(self.held_out), self.section.error_rows)))
        written = self.write_down(rows)
        self.heard = list(zip(rows["text"], written, strict=True))[:SHOWN]
        self.heard_at = self.trainer.state.global_step
        return error_rates(rows["text"], written, normalize=self.section.normalize == "words")

    def write_down(self, rows: Dataset) -> list[str]:
        """What the model takes stored rows to say."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        training_mode = base.training
        base.eval()
        marked = len(self.marks.prefix(next(iter(self.marks.languages), None)))
        longest = max(len(labels) - marked for labels in rows["labels"])
        most = min(2 * longest + ROOM, base.config.max_target_positions - marked - 1)
        written: list[str] = []
        for batch in rows.iter(self.recipe.eval.batch_size):
            features = self.collate.features([{"audio": audio} for audio in batch["audio"]])
            prefix = [labels[:marked] for labels in batch["labels"]]
            ids = write_down(base, features, prefix, self.marks, most)
            written += self.hearing.tokenizer.batch_decode(ids, skip_special_tokens=True)
        base.train(training_mode)
        return written

    def sample(self, step: int) -> None:
        """Show what is said in a few held-out rows, and what the model writes."""
        if step != self.heard_at:  # of other weights than those measured last
            self.measure()
        for said, written in self.heard:
            self.context.emit(SampleEvent(step=step, prompt=said, answer=written, stopped=True))

    def look(self, checkpoint: Path | None) -> None:
        """Whether a checkpoint is one of this run; then the live checks take over."""
        if checkpoint is not None and isinstance(self.hearing.model, PeftModel):
            self.say(look_at_checkpoint(checkpoint, self.hearing.model, self.plan))
        watched = Watched(self.recipe, self.resolved, vocabulary=self.plan.model.vocab_size, chats=False)
        watch = Watch(watched, earlier_events(self.context, checkpoint))
        self.watching = Watching(self.context.emit, watch, self.recipe, self.reporter, self.trainer)
        self.trainer.add_callback(self.watching)

    def shown(self, metrics: dict[str, float]) -> dict[str, float]:
        """Word and character error rate."""
        return {name: metrics[f"eval_{name}"] for name in ("wer", "cer") if f"eval_{name}" in metrics}

    def write(self, folder: Path) -> None:
        """Adapter, or whole model, with all that transformers needs beside it."""
        model = self.hearing.model
        if self.recipe.adapter.kind == "none":
            model = model.to(stored_dtype(self.plan.model.dtype))
        save_weights(model, folder)
        self.hearing.save_beside(folder)
        if isinstance(model, PeftModel):
            base: Any = model.get_base_model()
            base.config.architectures = [type(base).__name__]
            base.config.save_pretrained(folder)
