"""The losses of embedding models, by their names in a recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as st

from .section import EmbeddingSection
from .suiting import loss_name


def build_loss(model: SentenceTransformer, section: EmbeddingSection, layout: str) -> Any:
    """The loss module over ``model``.

    In-batch negatives: van den Oord et al., arXiv:1807.03748, cached by Gao et al., arXiv:2101.06983; CoSENT:
    Su 2022; AnglE: Li and Li, arXiv:2309.12871; online contrastive and triplets: Hermans et al.,
    arXiv:1703.07737.
    """
    scale, margin = section.scale, section.margin
    makers: dict[str, Callable[[], Any]] = {
        "multiple_negatives": lambda: st.MultipleNegativesRankingLoss(model, scale=scale),
        "cached_multiple_negatives": lambda: st.CachedMultipleNegativesRankingLoss(
            model, scale=scale, mini_batch_size=section.mini_batch_size
        ),
        "triplet": lambda: st.TripletLoss(
            model, distance_metric=st.TripletDistanceMetric.COSINE, triplet_margin=margin
        ),
        "cosent": lambda: st.CoSENTLoss(model, scale=scale),
        "angle": lambda: st.AnglELoss(model, scale=scale),
        "cosine_similarity": lambda: st.CosineSimilarityLoss(model),
        "contrastive": lambda: st.ContrastiveLoss(model, margin=margin),
        "online_contrastive": lambda: st.OnlineContrastiveLoss(model, margin=margin),
        "batch_all_triplet": lambda: st.BatchAllTripletLoss(model, margin=margin),
        "batch_hard_triplet": lambda: st.BatchHardTripletLoss(model, margin=margin),
    }
    loss = makers[loss_name(section, layout)]()
    if section.matryoshka:
        loss = st.MatryoshkaLoss(model, loss, section.matryoshka)
    return loss
