"""One optimizer step's forward and backward passes on the fast path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...models.fast_path import DecoderProgram
from .embedding_noise import EmbeddingNoise
from .graphs import TOKENS, GraphedLoss, launch_bound
from .leaving import interruptible
from .packed_steps import TOKEN_MULTIPLE, MicroBatch, TokenRow, micro_batches


@dataclass
class StepSums:
    """What a step's micro-batches added up to.

    Args:
        loss: 0-d on the device, the step's summed loss over ``normaliser``, detached.
        correct: 0-d on the device, supervised tokens whose label was the likeliest.
        tokens: documents' tokens.
        supervised: labels with loss.
    """

    loss: torch.Tensor
    correct: torch.Tensor
    tokens: int
    supervised: int


@dataclass
class FastStep:
    """Runs packed micro-batches through a program.

    Args:
        program: of the model.
        device: where it is.
        budget: tokens that fit in one micro-batch.
        filler: token id for filling up.
        noise: on the embeddings while training.
    """

    program: DecoderProgram
    device: torch.device
    budget: int
    filler: int = 0
    noise: EmbeddingNoise | None = None

    def __post_init__(self) -> None:
        self.graphed = GraphedLoss(self.forward_backward, self.program.buffers)

    def batches(self, rows: Sequence[TokenRow]) -> list[MicroBatch]:
        """The rows of a step as packed micro-batches, on the CPU."""
        return micro_batches(rows, self.budget, self.filler)

    def train(
        self,
        rows: Sequence[TokenRow],
        normaliser: int,
        scaler: Any = None,
        between: Callable[[], None] = lambda: None,
    ) -> StepSums:
        """Forward and backward of a whole step; gradients are of the summed loss over ``normaliser``.

        Args:
            rows: of the optimizer step.
            normaliser: supervised tokens of the step, over all processes.
            scaler: fp16's gradient scaler.
            between: called between micro-batches, see :func:`.leaving.interruptible`.
        """
        total, scale = self._nothing(), 1.0 / max(normaliser, 1)
        tokens = sum(len(row.input_ids) for row in rows)
        # Noise needs each batch's own lengths; a graph would replay those it was captured with.
        eager = self.device.type != "cuda" or scaler is not None or self.noise is not None
        eager = eager or launch_bound(self.program, min(tokens, self.budget)) is not None
        batches = micro_batches(rows, self.budget, self.filler, TOKEN_MULTIPLE if eager else TOKENS)
        for batch in interruptible(batches, between, self.device):
            if eager:
                factor = torch.tensor(scale) if scaler is None else scaler.scale(torch.tensor(scale))
                loss, correct = self.forward_backward(batch.to(self.device), factor.to(self.device))
            else:
                loss, correct = self.graphed(batch, scale, self.device)
            total.loss += loss * scale
            total.correct += correct
            total.tokens += batch.tokens
            total.supervised += batch.supervised
        return total

    def forward_backward(self, batch: MicroBatch, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss, correct = self._loss(batch)
        (loss * scale).backward()
        return loss.detach(), correct

    @torch.no_grad()
    def evaluate(self, rows: Sequence[TokenRow]) -> StepSums:
        """Summed loss of the rows; no gradient, no dropout left to the caller."""
        total = self._nothing()
        for batch in self.batches(rows):
            loss, correct = self._loss(batch.to(self.device))
            total.loss += loss
            total.correct += correct
            total.tokens += batch.tokens
            total.supervised += batch.supervised
        return total

    def _loss(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        if self.noise is not None:
            self.noise.expect(batch.rows, len(batch.packed.input_ids_T), self.device)
        loss, statistics = self.program.loss(batch.packed, batch.places_S, batch.labels_S, statistics=True)
        return loss, statistics.correct

    def _nothing(self) -> StepSums:
        zero = torch.zeros((), device=self.device)
        return StepSums(loss=zero, correct=torch.zeros((), device=self.device), tokens=0, supervised=0)
