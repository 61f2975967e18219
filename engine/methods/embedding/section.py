"""Recipe section of embedding models. Light: no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ..section import RowMethod

if TYPE_CHECKING:
    from ..stored_rows import StoredRows

Loss = Literal[
    "multiple_negatives", "cached_multiple_negatives", "triplet", "cosent", "angle", "cosine_similarity",
    "contrastive", "online_contrastive", "batch_all_triplet", "batch_hard_triplet",
]  # fmt: skip


class EmbeddingSection(RowMethod):
    """Texts that belong together come to lie close, others apart."""

    kind: Literal["embedding"] = "embedding"
    loss: Loss | Literal["auto"] = Field(
        "auto",
        description="auto: multiple_negatives for pairs and triplets, cosent for scored pairs, "
        "batch_all_triplet for labelled texts.",
    )
    pooling: Literal["auto", "mean", "cls", "last"] = Field(
        "auto",
        description="How a text's vectors become one; auto is what the model's folder says, else mean.",
    )
    query_prompt: str | None = Field(
        None, description="Text before each query (anchor); by default the model's own prompt, if it has one."
    )
    document_prompt: str | None = Field(None, description="Text before each document; likewise.")
    no_duplicates: bool = Field(
        True, description="No text twice in a batch, where it would be its own negative."
    )
    scale: float = Field(20.0, gt=0, description="Cosines are multiplied by this (1/temperature).")
    margin: float = Field(0.5, gt=0, description="Of the triplet and contrastive losses.")
    mini_batch_size: int = Field(
        32, ge=1, description="Texts at once in the cached loss; memory follows it, the result does not."
    )
    matryoshka: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=list,
        description="Also train the first so many dimensions as vectors (arXiv:2205.13147).",
    )
    retrieval: bool = Field(
        True, description="Held-out pairs are also measured by retrieval: nDCG@10, MRR@10, recall@10."
    )

    def refuse_rows(self, rows: StoredRows) -> None:
        """What :mod:`.suiting` knows of losses, labels and sizes."""
        from .suiting import refuse

        refuse(self, rows)
