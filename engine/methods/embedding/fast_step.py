"""A batch of an embedding model on the fast path: all its texts in one packed forward pass, then the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer import losses as st
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.util import cos_sim

from whet.kernels.contrastive import contrastive_loss
from whet.kernels.segment_pool import segment_pool

from ...models.fast_path.encoders import embedder_program_of
from ..graphed import GraphedStep
from ..packed_texts import multiple_on
from .token_texts import TextBatch

POOLINGS = {"mean": "mean", "cls": "first", "lasttoken": "last"}
SYMMETRIC = {"query_to_doc", "doc_to_query"}


@dataclass(frozen=True)
class Contrast:
    """In-batch negatives by the fused loss.

    Args:
        scale: of the cosines.
        symmetric: both directions.
    """

    scale: float
    symmetric: bool

    def __call__(self, embeddings_NE: torch.Tensor, batch: TextBatch) -> torch.Tensor:
        """The mean loss; the first column are the anchors, the second their positives."""
        anchors_BE, candidates_CE = embeddings_NE[: batch.rows], embeddings_NE[batch.rows : batch.texts]
        return contrastive_loss(anchors_BE, candidates_CE, scale=self.scale, symmetric=self.symmetric)


class FastEmbedding:
    """Runs batches through a model whose encoder is on the fast path.

    Args:
        model: with ``plain_reason(model, loss)`` None.
        loss: sentence-transformers' loss module.
        device: where the model is.
    """

    def __init__(self, model: SentenceTransformer, loss: Any, device: torch.device) -> None:
        parts: list[Any] = list(model)
        self.encoder = parts[0].model
        program = embedder_program_of(self.encoder)
        assert program is not None
        self.program = program
        self.mode, self.rest = POOLINGS[parts[1].pooling_mode], parts[2:]
        self.loss, self.device = loss, device
        self.contrast = fused_contrast(loss)
        if self.contrast is not None:  # takes cosines itself
            self.rest = [part for part in self.rest if not isinstance(part, Normalize)]
        self.graphed: GraphedStep[TextBatch] = GraphedStep(self.forward_backward, self.program.buffers)

    @property
    def multiple(self) -> int:
        """What batches are filled up to."""
        return multiple_on(self.device)

    def embeddings(self, batch: TextBatch) -> torch.Tensor:
        """(texts, E) of a batch on the device, in the order of its documents; differentiable."""
        hidden_TD = self.program.hidden_states(batch.packed)
        pooled_ND = segment_pool(hidden_TD, batch.packed.offsets, self.mode)[: batch.texts]
        for part in self.rest:
            if isinstance(part, Dense):
                pooled_ND = pooled_ND.to(part.linear.weight.dtype)
            pooled_ND = part({"sentence_embedding": pooled_ND})["sentence_embedding"]
        return pooled_ND

    def compute(self, batch: TextBatch, labels: torch.Tensor | None) -> torch.Tensor:
        """The batch's loss, differentiable.

        Args:
            batch: on the device.
            labels: of its rows.
        """
        with torch.autocast(
            self.device.type, enabled=False
        ):  # types are the program's; similarities are fp32
            embeddings_NE = self.embeddings(batch)
            if self.contrast is not None:
                return self.contrast(embeddings_NE, batch)
            columns = list(embeddings_NE.split(batch.rows))
            loss: torch.Tensor = self.loss.compute_loss_from_embeddings(columns, labels)
            return loss

    def train(
        self, batch: TextBatch, labels: torch.Tensor | None, scale: float, *, scaler: Any = None, flat: bool
    ) -> torch.Tensor:
        """Forward and backward; the loss times ``scale``, 0-d and detached.

        Args:
            batch: on the CPU.
            labels: of its rows.
            scale: of the loss, before the backward pass.
            scaler: fp16's gradient scaler.
            flat: gradients accumulate in buffers that stay, as a graph needs it.
        """
        if flat and scaler is None and labels is None and self._launches_alone():
            return self.graphed(batch, scale, self.device)
        factor = torch.tensor(scale) if scaler is None else scaler.scale(torch.tensor(scale))
        loss = self.compute(self.on_device(batch), None if labels is None else labels.to(self.device))
        (loss * factor.to(self.device)).backward()
        return loss.detach() * scale

    def forward_backward(self, batch: TextBatch, scale: torch.Tensor) -> torch.Tensor:
        """Of a batch on the device, launches alone; the scaled loss, detached."""
        loss = self.compute(batch, None) * scale
        loss.backward()
        return loss.detach()

    def on_device(self, batch: TextBatch) -> TextBatch:
        """The batch where the model is."""
        return (batch.pinned() if self.device.type == "cuda" else batch).on(self.device)

    def _launches_alone(self) -> bool:
        """Whether a step is nothing but launches, which a CUDA graph can replay."""
        projections = self.program.in_force.projections
        # An adapter's own dropout draws its seeds on the host.
        return (
            self.device.type == "cuda"
            and self.contrast is not None
            and not any(isinstance(part, Dense) for part in self.rest)
            and self.program.report.complete
            and not (self.encoder.training and any(projection.has_dropout for projection in projections))
        )


def plain_reason(model: Any, loss: Any) -> str | None:
    """Why batches go through the model and the loss as sentence-transformers calls them; None: they need not.

    The encoder is on the fast path then all the same, where it can be: what is lost is one pass for all
    columns, and the fused loss.
    """
    parts: list[Any] = list(model) if isinstance(model, SentenceTransformer) else []
    if len(parts) < 2 or type(parts[0]) is not Transformer or type(parts[1]) is not Pooling:
        return "the model is not an encoder with pooling behind it"
    if embedder_program_of(parts[0].model) is None:
        return "the encoder is not on the fast path"
    if parts[1].pooling_mode not in POOLINGS:
        return f"pooling_mode={parts[1].pooling_mode!r}"
    if not parts[1].include_prompt:
        return "pooling leaves out the prompt"
    if not all(type(part) in (Normalize, Dense) for part in parts[2:]):
        return "modules behind the pooling"
    if type(loss) not in FROM_EMBEDDINGS:
        return f"{type(loss).__name__} calls the model by itself"
    return None


FROM_EMBEDDINGS = (
    st.AnglELoss,
    st.BatchAllTripletLoss,
    st.BatchHardTripletLoss,
    st.ContrastiveLoss,
    st.CoSENTLoss,
    st.CosineSimilarityLoss,
    st.MultipleNegativesRankingLoss,
    st.OnlineContrastiveLoss,
    st.TripletLoss,
)
"""Losses that are functions of the columns' embeddings and the labels alone."""


def fused_contrast(loss: Any) -> Contrast | None:
    """The fused loss that computes the same, where there is one."""
    if type(loss) is not st.MultipleNegativesRankingLoss or loss.similarity_fct is not cos_sim:
        return None
    if loss.gather_across_devices or (loss.hardness_mode is not None and loss.hardness_strength):
        return None
    directions = set(loss.directions)
    if directions == {"query_to_doc"}:
        return Contrast(loss.scale, symmetric=False)
    if directions == SYMMETRIC and loss.partition_mode == "per_direction":
        return Contrast(loss.scale, symmetric=True)
    return None
