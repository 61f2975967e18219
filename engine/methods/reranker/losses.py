"""The losses of rerankers, by their names in a recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import losses as st
from sentence_transformers.util import batch_to_device
from torch.nn import functional

from .section import RerankerSection
from .suiting import loss_name


class TripletCrossEntropy(torch.nn.Module):
    """Binary cross-entropy of a query's documents: the first fits, the others do not."""

    def __init__(self, model: CrossEncoder) -> None:
        super().__init__()
        self.model: Any = model

    def forward(
        self, inputs: list[list[str]], labels: Any, prompt: str | None = None, task: str | None = None
    ) -> torch.Tensor:
        """The mean over all pairs, in nats; ``inputs`` are a column of queries, then columns of documents."""
        queries, *documents = inputs
        pairs = [pair for column in documents for pair in zip(queries, column, strict=True)]
        features = batch_to_device(self.model.preprocess(pairs, prompt=prompt, task=task), self.model.device)
        scores = self.model(features)["scores"].view(-1).float()
        fits = torch.zeros_like(scores)
        fits[: len(queries)] = 1.0
        return functional.binary_cross_entropy_with_logits(scores, fits)


def build_loss(model: CrossEncoder, section: RerankerSection, layout: str) -> Any:
    """The loss module over ``model``; a query's other documents of the batch as negatives: van den Oord et
    al., arXiv:1807.03748, cached by Gao et al., arXiv:2101.06983."""
    makers: dict[str, Callable[[], Any]] = {
        "bce": lambda: st.BinaryCrossEntropyLoss(model) if layout == "scored" else TripletCrossEntropy(model),
        "mse": lambda: st.MSELoss(model),
        "multiple_negatives": lambda: st.MultipleNegativesRankingLoss(
            model,
            num_negatives=section.negatives,
            scale=section.scale,  # type: ignore[arg-type]  # it multiplies, any number will do
        ),
        "cached_multiple_negatives": lambda: st.CachedMultipleNegativesRankingLoss(
            model,
            num_negatives=section.negatives,
            scale=section.scale,
            mini_batch_size=section.mini_batch_size,
        ),
    }
    return makers[loss_name(section, layout)]()
