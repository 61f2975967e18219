"""sentence-transformers' trainer of cross-encoders in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.trainer import CrossEncoderTrainer

from ..classification.trainer import ADAPTER
from ..run_loop import RunLoop


class RerankerTrainer(RunLoop, CrossEncoderTrainer):
    """Its checkpoints hold adapter and head as PEFT saves them, or the whole model."""

    def __init__(self, model: CrossEncoder, *args: Any, **more: Any) -> None:
        super().__init__(model, *args, **more)
        self._tokens = 0
        model.register_forward_pre_hook(self._count)

    def _count(self, module: Any, inputs: tuple[Any, ...]) -> None:
        self._tokens += int(inputs[0]["attention_mask"].sum())

    def count_tokens(self, inputs: dict[str, Any]) -> int:
        """Of all pairs since it was asked last: the loss makes them, the collator only hands over texts."""
        seen, self._tokens = self._tokens, 0
        return seen

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the base class; its tokens are none of a step's."""
        metrics = super().evaluate(*args, **kwargs)
        self._tokens = 0
        return metrics

    def write_weights(self, folder: Path) -> None:
        """What trains, and what sentence-transformers reads beside it."""
        save_reranker(self.model, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        own: Any = self.model
        if isinstance(own[0].model, PeftModel):
            set_peft_model_state_dict(own[0].model, load_file(Path(resume_from_checkpoint) / ADAPTER))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: it looks for carbon counters and writes a card that is not ours."""


def save_reranker(model: Any, folder: Path) -> None:
    """Adapter and head, or whole model, as ``CrossEncoder(folder)`` loads it."""
    model.save_pretrained(str(folder), create_model_card=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's form to fill in
