"""How good a classifier is on held-out rows."""

from __future__ import annotations

from typing import Any

import numpy as np

THRESHOLD = 0.0
"""A class is given where its logit is above this: a probability of one half."""


def of_classes(predicted: Any) -> dict[str, float]:
    """Accuracy and macro F1 of rows with one class each.

    Args:
        predicted: transformers' EvalPrediction; logits [rows, classes] and class numbers [rows].
    """
    given = np.asarray(predicted.predictions).argmax(-1)
    right = np.asarray(predicted.label_ids)
    classes = np.union1d(given, right)
    scores = [f1((given == number), (right == number)) for number in classes]
    return {"accuracy": float((given == right).mean()), "macro_f1": float(np.mean(scores))}


def of_label_sets(predicted: Any) -> dict[str, float]:
    """Accuracy (of whole sets), micro and macro F1 of rows with any number of classes each.

    Args:
        predicted: logits [rows, classes] and zeros or ones [rows, classes].
    """
    given = np.asarray(predicted.predictions) > THRESHOLD
    right = np.asarray(predicted.label_ids) > 0.5
    seen = np.flatnonzero((given | right).any(0))
    scores = [f1(given[:, number], right[:, number]) for number in seen]
    return {
        "accuracy": float((given == right).all(-1).mean()),
        "micro_f1": f1(given, right),
        "macro_f1": float(np.mean(scores)) if scores else 0.0,
    }


def f1(given: np.ndarray, right: np.ndarray) -> float:
    """Harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN); 0 where all three are 0."""
    both = int((given & right).sum())
    either = int(given.sum()) + int(right.sum())
    return 2 * both / either if either else 0.0


def shown(metrics: dict[str, float]) -> dict[str, float]:
    """Of the trainer's metrics those of the functions above and of tags, by their own names."""
    names = ("accuracy", "macro_f1", "micro_f1", "f1", "precision", "recall", "token_accuracy")
    return {name: metrics[f"eval_{name}"] for name in names if f"eval_{name}" in metrics}
