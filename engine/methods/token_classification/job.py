"""Training a token classifier as a run: words with tags in, a folder for transformers' pipeline out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForTokenClassification

from ...errors import WhetError
from ...runs.context import RunContext
from .. import training
from ..classification.job import HeadTraining
from ..classification.metrics import f1
from ..classification.trainer import ClassifierTrainer, Loss, cross_entropy
from .alignment import IGNORED, aligned, joined
from .entities import entity_scores, marks_entities


def run_token_classification(context: RunContext) -> None:
    """Train what the plan says and export it. See :func:`whet.engine.methods.jobs.run_job`."""
    training.run_method(context, TokenClassificationTraining)


class TokenClassificationTraining(HeadTraining):
    """Tags of words."""

    auto = AutoModelForTokenClassification
    task = "TOKEN_CLS"

    def _trainer(self) -> ClassifierTrainer:
        if not self.headed.tokenizer.is_fast:
            raise WhetError(
                "token_classification.tokenizer",
                f"The tokenizer of {self.recipe.model.name} ({type(self.headed.tokenizer).__name__}) does "
                "not say which characters a token is made of.",
                "Choose a model with tokenizer.json.",
            )
        trainer = super()._trainer()
        trainer.preprocess_logits_for_metrics = lambda logits, labels: logits.argmax(-1)
        return trainer

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Texts cut and padded; a tag number at each word's first token."""
        texts = [joined(row["words"]) for row in rows]
        batch = self.headed.tokenizer(
            [text for text, _ in texts],
            truncation=True,
            max_length=self.resolved.max_length,
            padding=True,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        offsets = batch.pop("offset_mapping").tolist()
        tags = [
            aligned(places, starts, [self.numbers[tag] for tag in row["tags"]])
            for places, (_, starts), row in zip(offsets, texts, rows, strict=True)
        ]
        return {**batch, "labels": torch.tensor(tags)}

    def loss(self) -> Loss:
        """Cross-entropy over the words of a step."""
        return cross_entropy()

    def measure(self) -> Callable[[Any], dict[str, float]]:
        """Of entities where the tags are of such, else of tags; words cut off the end do not count."""
        return self._entities if marks_entities(self.names) else self._tags

    def _entities(self, predicted: Any) -> dict[str, float]:
        right = predicted.label_ids
        named = np.array(self.names, dtype=object)
        rows = [
            (named[one[known]].tolist(), named[other[known]].tolist())
            for one, other, known in zip(predicted.predictions, right, right != IGNORED, strict=True)
        ]
        scores = entity_scores([one for one, _ in rows], [other for _, other in rows])
        return scores | _accuracy(predicted)

    def _tags(self, predicted: Any) -> dict[str, float]:
        known = predicted.label_ids != IGNORED
        given, right = predicted.predictions[known], predicted.label_ids[known]
        scores = [f1(given == number, right == number) for number in np.union1d(given, right)]
        return {"macro_f1": float(np.mean(scores))} | _accuracy(predicted)


def _accuracy(predicted: Any) -> dict[str, float]:
    known = predicted.label_ids != IGNORED
    return {"token_accuracy": float((predicted.predictions[known] == predicted.label_ids[known]).mean())}
