"""sentence-transformers' trainer in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from ..run_loop import RunLoop
from .fast_trainer import FastSentenceTransformerTrainer
from .token_texts import TextBatch

ADAPTER = "adapter_model.safetensors"


class EmbeddingTrainer(RunLoop, FastSentenceTransformerTrainer):
    """Its checkpoints hold the adapter as PEFT saves it, or the whole folder of modules."""

    def count_tokens(self, inputs: dict[str, Any]) -> int:
        """Tokens of a micro-batch, padding excluded."""
        batch = inputs.get("texts")
        return batch.tokens if isinstance(batch, TextBatch) else super().count_tokens(inputs)

    def write_weights(self, folder: Path) -> None:
        """What trains, and the modules around it, as sentence-transformers reads them."""
        save_embedder(self.model, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        embedder: Any = self.model
        if isinstance(embedder[0].model, PeftModel):
            weights = load_file(Path(resume_from_checkpoint) / ADAPTER)
            set_peft_model_state_dict(embedder[0].model, weights)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: it looks for carbon counters and writes a card that is not ours."""


def save_embedder(model: SentenceTransformer, folder: Path) -> None:
    """Adapter or whole model with modules.json, pooling, prompts and tokenizer."""
    model.save_pretrained(str(folder), create_model_card=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's form to fill in


def whole_in(model: SentenceTransformer, dtype: torch.dtype) -> SentenceTransformer:
    """For saving all weights in the type that they came in."""
    return model.to(dtype)
