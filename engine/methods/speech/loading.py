"""A Whisper model ready to train: the adapter on encoder and decoder, or all weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoFeatureExtractor, WhisperForConditionalGeneration, set_seed

from ...models.adapters import hold_trained_in_fp32
from ...models.loading import load_tokenizer
from ...plan import Plan
from ..complete_loading import adapted, load_complete, not_loaded

HEAD = "proj_out"


@dataclass(frozen=True)
class Hearing:
    """A loaded model and what belongs to it."""

    model: Any
    """transformers' model, or PEFT's wrapper around it."""
    tokenizer: Any
    extractor: Any
    """Makes features of sound, as the model's own files say."""

    @property
    def device(self) -> torch.device:
        """What it computes on."""
        return torch.device(self.model.device)

    def save_beside(self, folder: Path) -> None:
        """Tokenizer, feature extractor and generation settings."""
        self.tokenizer.save_pretrained(folder)
        self.extractor.save_pretrained(folder)
        self.model.generation_config.save_pretrained(folder)


def load_hearing(plan: Plan, path: Path) -> Hearing:
    """The plan's model from a local folder.

    Raises:
        WhetError: ``model.load``, ``adapter.*``.
    """
    set_seed(plan.recipe.training.seed)
    model = load_complete(WhisperForConditionalGeneration, plan, path, "Whisper", [HEAD])
    try:
        extractor = AutoFeatureExtractor.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise not_loaded(path, "Whisper", error) from error
    return Hearing(_trainable(plan, path, model), load_tokenizer(path), extractor)


def _trainable(plan: Plan, path: Path, model: Any) -> Any:
    if plan.recipe.adapter.kind != "none":
        return adapted(model, plan, path, plan.recipe.adapter)
    hold_trained_in_fp32(model)
    # Sines of fixed frequencies (arXiv:2212.04356), not learnt.
    model.model.encoder.embed_positions.requires_grad_(False)
    return model
