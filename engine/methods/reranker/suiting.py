"""Which rows and batches the losses of rerankers learn from. Light: a plan asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import WhetError
from ...models.families import family_of
from ..loss_names import suited_loss
from ..stored_rows import StoredRows
from .asking import answer_ids, asks

if TYPE_CHECKING:
    from .section import RerankerSection

AUTO = {"scored": "bce", "triplets": "bce", "pairs": "multiple_negatives"}
READS = {
    "bce": ("scored", "triplets"),
    "mse": ("scored",),
    "multiple_negatives": ("pairs", "triplets"),
    "cached_multiple_negatives": ("pairs", "triplets"),
}
"""Loss -> layouts of rows that it learns from."""


def loss_name(section: RerankerSection, layout: str) -> str:
    """The loss that a recipe asks for. Raises WhetError ``reranker.loss`` where the rows do not suit it."""
    return suited_loss("reranker", section.loss, layout, auto=AUTO, reads=READS)


def refuse(section: RerankerSection, rows: StoredRows) -> None:
    """Raises WhetError ``reranker.loss``, ``reranker.scores``, ``reranker.batch``, ``reranker.head``."""
    loss = loss_name(section, rows.layout)
    if loss == "bce" and rows.layout == "scored":
        least, most = rows.range_of("score")
        if least < 0 or most > 1:
            raise WhetError(
                "reranker.scores",
                f"The scores go from {least:g} to {most:g}, and method.loss=bce learns probabilities, from 0 "
                "to 1.",
                "Divide them by the highest one, or set method.loss=mse.",
            )
    if asks(section, rows.model.path, rows.model.name):
        if family_of(rows.model.model_type).encoder is not None:
            raise WhetError(
                "reranker.head",
                f"method.head=yes_no is for models that answer; {rows.model.model_type} is an encoder.",
                "Set method.head=score.",
            )
        answer_ids(rows.model.path)
    if rows.layout == "pairs" and rows.batch_size < 2:
        raise WhetError(
            "reranker.batch",
            "training.batch_size=1 leaves a query no document that does not fit: the loss would always be 0.",
            "Set training.batch_size to 2 or more; each query is told from the documents of the others.",
        )
