"""Training a classifier as a run: texts with classes in, a folder that transformers' pipeline loads out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, TrainingArguments

from ...checks.live import Watch, Watched
from ...models.loading import stored_dtype
from ...recipe import ClassificationSection
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
from .classes import class_names, numbers_of
from .loading import Headed, load_headed
from .metrics import of_classes, of_label_sets, shown
from .trainer import ClassifierTrainer, Loss, binary_cross_entropy, cross_entropy, save_headed


def run_classification(context: RunContext) -> None:
    """Train what the plan says and export it. See :func:`whet.engine.methods.jobs.run_job`."""
    training.run_method(context, ClassificationTraining)


class HeadTraining(training.Training):
    """The objects of one attempt at a model with one output a class, of rows or of words."""

    trainer: ClassifierTrainer
    auto: ClassVar[Any]
    task: ClassVar[str]
    problem: str | None = None

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self.data = planned_tokens(context, self.plan.model.path)
        context.leave_if_asked()
        labels = self.data.report.labels
        section: Any = self.recipe.method
        names = class_names(labels, section.label_names)
        untrained = [label for label, count in labels.items() if not count]
        if untrained:
            context.emit(PhaseEvent(phase="data", detail=f"no training row has {', '.join(untrained[:10])}"))
        self.headed = self._load(names)
        self.names = [self.headed.config.id2label[number] for number in range(len(names))]
        self.numbers = self._numbers(labels, names)
        context.leave_if_asked()
        self.trainer = self._trainer()
        self.say_fused(with_steps(self.headed.fused, self.trainer))
        self.report(evaluates=self.data.eval is not None)

    @abstractmethod
    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """A micro-batch."""

    @abstractmethod
    def loss(self) -> Loss:
        """Of a micro-batch's outputs."""

    @abstractmethod
    def measure(self) -> Callable[[Any], dict[str, float]]:
        """What is told of predictions on held-out rows."""

    def _load(self, names: Sequence[str]) -> Headed:
        self.context.emit(PhaseEvent(phase="load", detail=self.recipe.model.name))
        path, trusted = locate_base(self.context)
        return load_headed(
            self.plan,
            path,
            self.auto,
            names,
            task=self.task,
            problem=self.problem,
            trust_remote_code=trusted,
        )

    def _numbers(self, labels: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
        """A row's class to the head's output, whose order may be the model's own."""
        return {label: self.names.index(names[number]) for label, number in numbers_of(labels, names).items()}

    def _trainer(self) -> ClassifierTrainer:
        context, recipe, resolved = self.context, self.recipe, self.resolved
        optimizer, finding = usable_optimizer(resolved.optimizer, self.headed.device)
        if finding is not None:
            context.emit(FindingEvent(finding=finding))
        return ClassifierTrainer(
            self.headed.model,
            TrainingArguments(
                **shared_arguments(recipe, resolved, context.dir.checkpoints, optimizer),
                **checkpointing(resolved.gradient_checkpointing),
                remove_unused_columns=False,
                label_names=["labels"],
            ),
            emit=context.emit,
            keep=recipe.training.keep_checkpoints,
            cursor=cursor_of(self.plan),
            train_dataset=Dataset.from_file(str(self.data.train)),
            eval_dataset=Dataset.from_file(str(self.data.eval)) if self.data.eval is not None else None,
            data_collator=self.collate,
            compute_loss_func=self.loss(),
            compute_metrics=self.measure(),
            processing_class=self.headed.tokenizer,
        )

    def look(self, checkpoint: Path | None) -> None:
        """Whether a checkpoint is one of this run; then the live checks take over."""
        if checkpoint is not None and isinstance(self.headed.model, PeftModel):
            self.say(look_at_checkpoint(checkpoint, self.headed.model, self.plan))
        watched = Watched(self.recipe, self.resolved, vocabulary=len(self.names), chats=False)
        watch = Watch(watched, earlier_events(self.context, checkpoint))
        self.watching = Watching(self.context.emit, watch, self.recipe, self.reporter, self.trainer)
        self.trainer.add_callback(self.watching)

    def shown(self, metrics: dict[str, float]) -> dict[str, float]:
        """The method's own."""
        return shown(metrics)

    def write(self, folder: Path) -> None:
        """Adapter and head, or the whole model, with tokenizer and classes."""
        model = self.headed.model
        if self.recipe.adapter.kind == "none":
            model = model.to(stored_dtype(self.plan.model.dtype))
        save_headed(model, self.headed.tokenizer, self.headed.config, folder)


class ClassificationTraining(HeadTraining):
    """Classes of rows."""

    auto = AutoModelForSequenceClassification
    task = "SEQ_CLS"

    def __init__(self, context: RunContext) -> None:
        assert isinstance(context.recipe.method, ClassificationSection)
        self.section = context.recipe.method
        self.many = context.plan.data.report.format.other == "multi_labelled"
        self.problem = "multi_label_classification" if self.many else "single_label_classification"
        super().__init__(context)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Texts cut and padded; a class number a row, or a row of zeros and ones."""
        pairs = [[row["text_pair"] for row in rows]] if "text_pair" in rows[0] else []
        batch = self.headed.tokenizer(
            [row["text"] for row in rows],
            *pairs,
            truncation=True,
            max_length=self.resolved.max_length,
            padding=True,
            return_tensors="pt",
        )
        return {**batch, "labels": self._targets(rows)}

    def _targets(self, rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        if not self.many:
            return torch.tensor([self.numbers[row["label"]] for row in rows])
        found = torch.zeros(len(rows), len(self.names))
        for place, row in enumerate(rows):
            found[place, [self.numbers[label] for label in row["labels"]]] = 1.0
        return found

    def loss(self) -> Loss:
        """Cross-entropy, or binary for each class where a row may have several."""
        kind = binary_cross_entropy if self.many else cross_entropy
        balanced = self.section.class_weights == "balanced"
        # On the device from the first: a captured step copies nothing from the host.
        return kind(self._weights().to(self.headed.device) if balanced else None)

    def _weights(self) -> torch.Tensor:
        """A class's rows count together as much as another's; where a row has several classes, as much as the
        rows without it. Classes without training rows have no say."""
        report = self.data.report
        counts = torch.ones(len(self.names))
        for label, count in report.labels.items():
            counts[self.numbers[label]] = max(1, count)
        if self.many:
            return (report.train.rows - counts).clamp_min(1) / counts
        return counts.sum() / (len(counts) * counts)

    def measure(self) -> Callable[[Any], dict[str, float]]:
        """Accuracy and F1."""
        return of_label_sets if self.many else of_classes
