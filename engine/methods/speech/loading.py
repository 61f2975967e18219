"""A Whisper model ready to train: the adapter on encoder and decoder, or all weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoFeatureExtractor, WhisperForConditionalGeneration, set_seed

from ...errors import WhetError
from ...models.adapters import add_adapter, hold_trained_in_fp32
from ...models.loading import load_tokenizer
from ...plan import Plan
from ..classification.loading import load_options

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
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        options = load_options(plan, config, False)
        if "quantization_config" in options:
            options["quantization_config"].llm_int8_skip_modules = [HEAD]
        loaded: Any = WhisperForConditionalGeneration.from_pretrained(path, config=config, **options)
        extractor = AutoFeatureExtractor.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise WhetError(
            "model.load",
            f"{path} could not be loaded as Whisper: {str(error).strip().splitlines()[0]}",
            "Check that the folder holds config.json, preprocessor_config.json and the safetensors weights.",
        ) from error
    model, seen = loaded
    broken = sorted([*seen["missing_keys"], *(one[0] for one in seen["mismatched_keys"])])
    if broken:
        raise WhetError(
            "model.load",
            f"{path} lacks {len(broken)} weights of Whisper, or holds them in another shape: {broken[0]}.",
            "Download the model again, whole.",
        )
    model.config.use_cache = False
    return Hearing(_trainable(plan, path, model), load_tokenizer(path), extractor)


def _trainable(plan: Plan, path: Path, model: Any) -> Any:
    recipe = plan.recipe
    if recipe.adapter.kind == "none":
        hold_trained_in_fp32(model)
        # Sines of fixed frequencies (arXiv:2212.04356), not learnt.
        model.model.encoder.embed_positions.requires_grad_(False)
        return model
    model.requires_grad_(False)
    name = recipe.model.name
    return add_adapter(
        model,
        recipe.adapter,
        recipe.training.seed,
        name=str(path) if Path(name).exists() else name,
        revision=recipe.model.revision,
        task=None,  # PEFT's sequence-to-sequence wrapper passes token ids, and these inputs are features
    )
