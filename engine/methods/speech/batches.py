"""A micro-batch of recordings with what is said in them: collated on the host, filled up to one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..graphed import Shape, StaticBatch
from ..head_batches import IGNORED


@dataclass(frozen=True)
class Filling:
    """Least shape of a batch: what is missing are silent rows and tokens that count for nothing.

    With one shape a run needs one CUDA graph, and the memory of one.
    """

    rows: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Recordings:
    """What the host knows of a micro-batch.

    Args:
        sounds: int16 [rows, samples].
        before: what the decoder has written before each token, [rows, tokens].
        labels: [rows, tokens], :data:`IGNORED` behind the end.
        tokens: labels that count.
    """

    sounds: torch.Tensor
    before: torch.Tensor
    labels: torch.Tensor
    tokens: int


@dataclass(frozen=True)
class HeardBatch(StaticBatch):
    """What the model reads.

    Args:
        features: fp32 [rows, mels, frames], on the device.
        before: as :class:`Recordings`.
        labels: as :class:`Recordings`.
        mask: on the device, which tokens see which, [1, 1, tokens, tokens]; the same for all batches of a
            shape. None where the model makes its own.
    """

    features: torch.Tensor
    before: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor | None

    @property
    def shape(self) -> Shape:
        rows, tokens = self.labels.shape
        # Each shape is run eagerly before it is captured: libraries choose their kernels by it.
        return rows * tokens, rows, (rows, tokens)

    def tensors(self) -> list[torch.Tensor]:
        return [self.features, self.before, self.labels]

    def pinned(self) -> HeardBatch:
        return replace(self, before=self.before.pin_memory(), labels=self.labels.pin_memory())

    def on(self, device: torch.device) -> HeardBatch:
        features, before, labels = (tensor.to(device, non_blocking=True) for tensor in self.tensors())
        return HeardBatch(features, before, labels, self.mask)


def said(
    rows: Sequence[Mapping[str, Any]], start: int, end: int, filling: Filling
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the decoder has written before each token, and the labels, both [rows, tokens].

    Args:
        rows: with ``labels``, token ids.
        start: id before the first token.
        end: id that fills up behind a text.
        filling: least shape.
    """
    longest = max(filling.tokens, *(len(row["labels"]) for row in rows))
    labels = torch.full((max(filling.rows, len(rows)), longest), IGNORED)
    for number, row in enumerate(rows):
        labels[number, : len(row["labels"])] = torch.as_tensor(row["labels"])
    before = labels.roll(1, dims=1)
    before[:, 0] = start
    return before.masked_fill(before == IGNORED, end), labels
