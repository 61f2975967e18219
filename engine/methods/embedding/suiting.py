"""Which rows and batches the losses of embedding models learn from. Light: a plan asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import WhetError
from ...models.sentence_folder import read_sentence_folder
from ..loss_names import suited_loss
from ..stored_rows import StoredRows

if TYPE_CHECKING:
    from .section import EmbeddingSection

AUTO = {
    "pairs": "multiple_negatives",
    "triplets": "multiple_negatives",
    "scored": "cosent",
    "labelled": "batch_all_triplet",
}
READS = {
    "multiple_negatives": ("pairs", "triplets"),
    "cached_multiple_negatives": ("pairs", "triplets"),
    "triplet": ("triplets",),
    "cosent": ("scored",),
    "angle": ("scored",),
    "cosine_similarity": ("scored",),
    "contrastive": ("scored",),
    "online_contrastive": ("scored",),
    "batch_all_triplet": ("labelled",),
    "batch_hard_triplet": ("labelled",),
}
"""Loss -> layouts of rows that it learns from."""
IN_BATCH = ("multiple_negatives", "cached_multiple_negatives")
"""Losses to which the other rows of a batch are wrong answers."""
OF_LABELS = 4
"""Rows of the smallest batch that can hold two rows of each of two labels."""


def loss_name(section: EmbeddingSection, layout: str) -> str:
    """The loss that a recipe asks for. Raises WhetError ``embedding.loss`` where the rows do not suit it."""
    return suited_loss("embedding", section.loss, layout, auto=AUTO, reads=READS)


def refuse(section: EmbeddingSection, rows: StoredRows) -> None:
    """Raises WhetError ``embedding.loss``, ``embedding.batch``, ``embedding.labels``,
    ``embedding.matryoshka``."""
    loss_name(section, rows.layout)
    if rows.layout == "labelled":
        _refuse_labels(rows)
    elif rows.layout == "pairs" and rows.batch_size < 2:
        raise WhetError(
            "embedding.batch",
            "training.batch_size=1 leaves a pair no other text to be told from: the loss would always be 0.",
            "Set training.batch_size to 2 or more; the larger, the better it learns.",
        )
    _refuse_dimensions(section, rows)


def _refuse_labels(rows: StoredRows) -> None:
    """Each batch holds at least two rows of at least two labels: sentence-transformers draws it so."""
    if rows.batch_size < OF_LABELS or rows.batch_size % 2:
        raise WhetError(
            "embedding.batch",
            f"training.batch_size={rows.batch_size}: labelled texts are drawn two of a label at a time, of "
            "two labels or more.",
            "Set training.batch_size to an even number from 4 on.",
        )
    often = [label for label, count in rows.counts_of("label").items() if count > 1]
    if len(often) < 2:
        raise WhetError(
            "embedding.labels",
            f"{len(often)} label(s) of the training rows have two rows or more, and two such are needed.",
            "Add rows that share a label: a text is learnt beside others of its own label and of another.",
        )


def _refuse_dimensions(section: EmbeddingSection, rows: StoredRows) -> None:
    if not section.matryoshka:
        return
    try:
        dense = read_sentence_folder(rows.model.path).dense
    except WhetError:  # modules whose sizes only sentence-transformers knows
        return
    size = dense[-1].outputs if dense else rows.model.hidden_size
    if max(section.matryoshka) > size:
        raise WhetError(
            "embedding.matryoshka",
            f"method.matryoshka asks for {max(section.matryoshka)} dimensions, and this model's vectors have "
            f"{size}.",
            f"Name sizes up to {size}, e.g. [{size}, {max(1, size // 2)}, {max(1, size // 4)}].",
        )
