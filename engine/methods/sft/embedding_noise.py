"""Noise on the input embeddings (NEFTune, arXiv:2310.05914), also where rows are packed.

Uniform in +- alpha / sqrt(L D), L the tokens of the padded row and D the model's width. A packed row knows
each document's L: that of the padded row the document would have stood in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from .packed_steps import TokenRow


class EmbeddingNoise:
    """Adds noise to what an embedding gives while it is in training mode.

    Args:
        alpha: NEFTune's.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.widths_T: torch.Tensor | None = None
        """L of each token of the packed row that goes through next; None for a padded batch."""

    @contextmanager
    def on(self, embedding: nn.Module) -> Iterator[None]:
        """While the context lasts."""
        handle = embedding.register_forward_hook(self._add)
        try:
            yield
        finally:
            handle.remove()

    def expect(self, rows: Sequence[TokenRow], tokens: int, device: torch.device) -> None:
        """The next packed row holds these documents, filled up to ``tokens``."""
        lengths = [len(row.input_ids) for row in rows]
        widths_T = np.ones(tokens, dtype=np.float32)
        documents = np.repeat([row.width or len(row.input_ids) for row in rows], lengths)
        widths_T[: len(documents)] = documents
        self.widths_T = torch.from_numpy(widths_T).to(device)

    def _add(self, module: nn.Module, _: Any, embedded_BTD: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return embedded_BTD
        tokens, dimensions = embedded_BTD.shape[1:]
        noise_BTD = torch.empty_like(embedded_BTD).uniform_(-1.0, 1.0)
        if self.widths_T is None:
            return embedded_BTD + noise_BTD * (self.alpha / math.sqrt(tokens * dimensions))
        size_T1 = (self.alpha * (self.widths_T * dimensions).rsqrt())[:, None]
        return embedded_BTD + noise_BTD * size_T1.to(embedded_BTD.dtype)
