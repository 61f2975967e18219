"""`SentenceTransformerTrainer`: sentence-transformers' own, with whole batches on the fast path."""

from __future__ import annotations

from typing import Any

from ..methods.embedding.fast_trainer import FastSentenceTransformerTrainer
from .notes import say


class SentenceTransformerTrainer(FastSentenceTransformerTrainer):
    """Takes what sentence-transformers' trainer takes, and trains the same model on the same batches.

    The library's own trainer runs a model of `FastSentenceTransformer` on whet's kernels too; this one also
    tokenises once, embeds all texts of a batch in one pass and, on a GPU, replays the step as one graph.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.plain_reason is not None:
            say(f"Batches go through the library's own steps, which are slower: {self.plain_reason}.")
