"""Recipe section of rerankers. Light: no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..section import RowMethod

if TYPE_CHECKING:
    from ..stored_rows import StoredRows

Loss = Literal["bce", "mse", "multiple_negatives", "cached_multiple_negatives"]


class RerankerSection(RowMethod):
    """A query and a document, read together, become one score; what fits scores higher."""

    kind: Literal["reranker"] = "reranker"
    loss: Loss | Literal["auto"] = Field(
        "auto",
        description="auto: bce (binary cross-entropy) for scored pairs, from 0 to 1, and for triplets; "
        "multiple_negatives for pairs. mse learns any scores, e.g. a teacher's.",
    )
    negatives: int = Field(
        4, ge=1, description="Other documents of the batch that multiple_negatives sets beside each positive."
    )
    scale: float = Field(10.0, gt=0, description="The multiple_negatives losses multiply scores by this.")
    mini_batch_size: int = Field(
        32, ge=1, description="Pairs at once in the cached loss; memory follows it, the result does not."
    )
    head: Literal["auto", "score", "yes_no"] = Field(
        "auto",
        description="score: a head of one score on the model. yes_no: a language model answers, and the "
        "score is the logit of yes less that of no (Qwen3-Reranker). auto: yes_no for language models that "
        "are rerankers by their folder or name.",
    )
    instruction: str = Field(
        "Given a web search query, retrieve relevant passages that answer the query",
        description="What yes_no models are told to judge by; saved with the model.",
    )
    candidates: int = Field(
        20,
        ge=2,
        description="Documents that each held-out query ranks for nDCG@10 and MRR@10: its own, filled up "
        "with those of other queries.",
    )

    def more_inputs(self, layout: str) -> int:
        """Negatives from the batch; the cached loss holds a mini-batch at a time, however many they are."""
        asked = self.loss == "multiple_negatives" or (self.loss == "auto" and layout == "pairs")
        return self.negatives if asked else 0

    def refuse_rows(self, rows: StoredRows) -> None:
        """What :mod:`.suiting` knows of losses and scores, and FP8."""
        from ..classification.suiting import refuse_fp8
        from .suiting import refuse

        refuse_fp8(self.kind, rows.base_precision)
        refuse(self, rows)
