"""Stored rows as features, what the decoder has written before each token, and the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...data.audio import samples_of
from ...data.transcripts import Transcripts
from ..head_batches import IGNORED
from .batches import Filling, Recordings, said
from .features import SoundFeatures, other_features
from .loading import Hearing

AS_LONG = Filling()


class SoundCollator:
    """Features are computed for a batch: stored, a second of a short sound would take the thirty of the
    model's whole window."""

    def __init__(self, hearing: Hearing, marks: Transcripts) -> None:
        self.hearing, self.marks = hearing, marks
        self.other = other_features(hearing.extractor)
        """Why features are the extractor's to make, and steps the base trainer's."""
        if self.other is None:
            self.features_of = SoundFeatures(hearing.extractor, hearing.device)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """``input_features`` [rows, mels, frames], ``decoder_input_ids`` and ``labels`` [rows, tokens]."""
        before, labels = said(rows, self.marks.start, self.marks.end, AS_LONG)
        return {"input_features": self.features(rows), "decoder_input_ids": before, "labels": labels}

    def recordings(self, rows: Sequence[Mapping[str, Any]], filling: Filling) -> Recordings:
        """A micro-batch as the host knows it, of at least the shape that is asked for."""
        before, labels = said(rows, self.marks.start, self.marks.end, filling)
        sounds = self.features_of.sounds(rows, filling.rows)
        return Recordings(sounds, before, labels, int(labels.ne(IGNORED).sum()))

    def features(self, rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """Of the rows' sounds, padded to the model's window."""
        if self.other is None:
            return self.features_of(self.features_of.sounds(rows))
        extractor = self.hearing.extractor
        found: torch.Tensor = extractor(
            [samples_of(row["audio"]) for row in rows],
            sampling_rate=extractor.sampling_rate,
            return_tensors="pt",
            device=str(self.hearing.device),
        )["input_features"]
        return found
