"""Log-mel features of recordings, on the model's device and without waiting for it.

The numbers are those of transformers' WhisperFeatureExtractor: its own filters, window and steps. That one
brings them back to the host, for which a GPU must finish all that it has before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

from ...data.audio import FULL_SCALE

FLOOR = 1e-10
"""Least energy of a band, before the logarithm."""
RANGE = 8.0
"""Powers of ten below a recording's loudest band; what is quieter counts as that."""


class SoundFeatures:
    """Makes a batch's features.

    Args:
        extractor: transformers' feature extractor, from the model's folder.
        device: where the features are to lie.
    """

    def __init__(self, extractor: Any, device: torch.device) -> None:
        self.extractor, self.device = extractor, device
        self.window = torch.hann_window(extractor.n_fft, device=device)
        filters_FM = torch.from_numpy(np.ascontiguousarray(extractor.mel_filters))
        self.filters_MF = filters_FM.to(device, torch.float32).T

    def sounds(self, rows: Sequence[Mapping[str, Any]], fill: int = 0) -> torch.Tensor:
        """The rows' recordings as stored, int16 [rows, samples], cut or filled with silence to the model's
        window; pinned where they go to a GPU.

        Args:
            rows: with ``audio``, 16-bit samples.
            fill: rows of silence behind, up to this many in all.
        """
        shape = max(len(rows), fill), self.extractor.n_samples
        found = torch.zeros(shape, dtype=torch.int16, pin_memory=self.device.type == "cuda")
        sounds = found.numpy()
        for number, row in enumerate(rows):
            samples = np.frombuffer(row["audio"], dtype="<i2")[: shape[1]]
            sounds[number, : len(samples)] = samples
        return found

    @torch.no_grad()
    def __call__(self, sounds: torch.Tensor) -> torch.Tensor:
        """Features, fp32 [rows, mels, frames] on the device, of what :meth:`sounds` gave."""
        extractor = self.extractor
        waves = sounds.to(self.device, non_blocking=True).float() / FULL_SCALE
        spectrum = torch.stft(
            waves, extractor.n_fft, extractor.hop_length, window=self.window, return_complex=True
        )
        energies = (spectrum[..., :-1].abs() ** 2).contiguous()
        bands = (self.filters_MF @ energies).clamp_min(FLOOR).log10()
        loudest = bands.amax((1, 2), keepdim=True)
        return (torch.maximum(bands, loudest - RANGE) + 4.0) / 4.0


def other_features(extractor: Any) -> str | None:
    """Why an extractor's features are not :class:`SoundFeatures`'."""
    if type(extractor) is not WhisperFeatureExtractor:
        return f"{type(extractor).__name__} makes features of its own"
    return "the feature extractor adds noise" if extractor.dither else None
