"""transformers' trainer in a run of a Whisper model: its steps, its error rates, its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..classification.trainer import IGNORED, HeadTrainer
from .batches import Recordings
from .steps import HearingSteps


class SpeechTrainer(HeadTrainer, HearingSteps):
    """Each evaluation also tells ``measure``'s numbers beside the loss.

    Args:
        measure: of the model as it is.
    """

    def __init__(self, *args: Any, measure: Callable[[], dict[str, float]], **more: Any) -> None:
        super().__init__(*args, **more)
        self.measure = measure

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """A step's micro-batches, and how many tokens they write."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return samples, self.in_all(sum(_written(batch) for batch in self.counting(samples)))

    def count_tokens(self, inputs: dict[str, Any]) -> int:
        """Those that are written; a window of sound is as long whatever is said."""
        return int(_written(inputs))

    def evaluation_loop(self, *args: Any, **more: Any) -> Any:
        """As the base class, with the numbers beside the loss."""
        found = super().evaluation_loop(*args, **more)
        prefix = more.get("metric_key_prefix", "eval")
        measured = {f"{prefix}_{name}": value for name, value in self.measure().items()}
        return found._replace(metrics={**(found.metrics or {}), **measured})


def _written(batch: dict[str, Any]) -> Any:
    """Tokens that a micro-batch's texts have; counted on the host where that is possible."""
    heard = batch.get("heard")
    return heard.tokens if isinstance(heard, Recordings) else batch["labels"].ne(IGNORED).sum()
