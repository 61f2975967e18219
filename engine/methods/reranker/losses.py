"""The losses of rerankers, by their names in a recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        pairs = pairs_of(inputs)
        features = batch_to_device(self.model.preprocess(pairs, prompt=prompt, task=task), self.model.device)
        scores = self.model(features)["scores"].view(-1).float()
        fits = fitting(len(inputs[0]), len(pairs)).to(scores.device)
        return functional.binary_cross_entropy_with_logits(scores, fits)


def pairs_of(columns: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Each query, of the first column, with its document of each other column; column by column."""
    queries, *documents = columns
    return [pair for column in documents for pair in zip(queries, column, strict=True)]


def fitting(queries: int, pairs: int) -> torch.Tensor:
    """What the scores of a query's pairs are to become: 1 for those of the first column of documents."""
    return (torch.arange(pairs) < queries).float()


Measure = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def of_scores(loss: Any) -> Measure | None:
    """(scores, what they are to become) -> what ``loss`` is of them; None where it takes more than that."""
    measures: dict[type, Measure] = {
        st.BinaryCrossEntropyLoss: functional.binary_cross_entropy_with_logits,
        TripletCrossEntropy: functional.binary_cross_entropy_with_logits,
        st.MSELoss: functional.mse_loss,
    }
    return measures.get(type(loss))


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
