"""transformers' trainer in a run of a Whisper model: its batches, its error rates, its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...data.audio import samples_of
from ...data.transcripts import Transcripts
from ..classification.trainer import IGNORED, HeadTrainer
from .loading import Hearing


class SoundCollator:
    """Stored rows as features, what the decoder has written before each token, and the labels.

    Features are computed here, for the batch: stored, a second of a short sound would take the thirty of the
    model's whole window.
    """

    def __init__(self, hearing: Hearing, marks: Transcripts) -> None:
        self.hearing, self.marks = hearing, marks

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """``input_features`` [rows, mels, frames], ``decoder_input_ids`` and ``labels`` [rows, tokens]."""
        longest = max(len(row["labels"]) for row in rows)
        labels = torch.full((len(rows), longest), IGNORED)
        for number, row in enumerate(rows):
            labels[number, : len(row["labels"])] = torch.as_tensor(row["labels"])
        before = labels.roll(1, dims=1)
        before[:, 0] = self.marks.start
        return {
            "input_features": self.features(rows),
            "decoder_input_ids": before.masked_fill(before == IGNORED, self.marks.end),
            "labels": labels,
        }

    def features(self, rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """Of the rows' sounds, padded to the model's window."""
        extractor = self.hearing.extractor
        found: torch.Tensor = extractor(
            [samples_of(row["audio"]) for row in rows],
            sampling_rate=extractor.sampling_rate,
            return_tensors="pt",
            device=str(self.hearing.device),
        )["input_features"]
        return found


class SpeechTrainer(HeadTrainer):
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
        return samples, self.in_all(
            sum(batch["labels"].ne(IGNORED).sum() for batch in self.counting(samples))
        )

    def count_tokens(self, inputs: dict[str, Any]) -> int:
        """Those that are written; a window of sound is as long whatever is said."""
        return int((inputs["labels"] != IGNORED).sum())

    def evaluation_loop(self, *args: Any, **more: Any) -> Any:
        """As the base class, with the numbers beside the loss."""
        found = super().evaluation_loop(*args, **more)
        prefix = more.get("metric_key_prefix", "eval")
        measured = {f"{prefix}_{name}": value for name, value in self.measure().items()}
        return found._replace(metrics={**(found.metrics or {}), **measured})
