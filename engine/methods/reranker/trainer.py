"""sentence-transformers' trainer of cross-encoders in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.trainer import CrossEncoderTrainer

from ..classification.trainer import ADAPTER
from ..head_batches import HeadBatch
from ..head_steps import HeadSteps
from ..run_loop import RunLoop
from .losses import fitting, of_scores, pairs_of


class RerankerTrainer(RunLoop, HeadSteps, CrossEncoderTrainer):
    """Its checkpoints hold adapter and head as PEFT saves them, or the whole model."""

    def __init__(self, model: CrossEncoder, *args: Any, **more: Any) -> None:
        super().__init__(model, *args, **more)
        self._tokens = 0
        model.register_forward_pre_hook(self._count)
        self.measure = of_scores(self.loss)
        self.choose_steps(model.tokenizer, _refusal(model, self.loss))

    @property
    def transformer(self) -> Any:
        """Inside the cross-encoder."""
        model: Any = self.model
        return model[0].model

    def pack(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch's pairs, tokenised as sentence-transformers does it, and packed."""
        assert self.packing is not None
        told = {name: batch.get(name) for name in ("prompt", "task")}
        columns = [texts for name, texts in batch.items() if name not in ("label", *told)]
        pairs = pairs_of(columns)
        aims = batch["label"].float() if "label" in batch else fitting(len(columns[0]), len(pairs))
        packed = self.packing.pack(self.model.preprocess(pairs, **told), aims)
        return batch if packed is None else {"texts": packed}

    def head_loss(self, batch: HeadBatch, divisor: torch.Tensor) -> torch.Tensor:
        """The mean over all pairs, of the model's own head."""
        assert self.measure is not None
        with self.accelerator.autocast():
            logits = self.transformer(head_texts=batch.texts).logits
        return self.measure(logits.view(-1).float(), batch.labels) / divisor

    def divisor(self, items: Any) -> Any:
        """Micro-batches of a step."""
        return self.current_gradient_accumulation_steps

    def _count(self, module: Any, inputs: tuple[Any, ...]) -> None:
        self._tokens += int(inputs[0]["attention_mask"].sum())

    def count_tokens(self, inputs: dict[str, Any]) -> int:
        """Of all pairs since it was asked last: the loss makes them, the collator only hands over texts."""
        batch = inputs.get("texts")
        seen, self._tokens = self._tokens, 0
        return batch.tokens if isinstance(batch, HeadBatch) else seen

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


def _refusal(model: CrossEncoder, loss: Any) -> str | None:
    if len(model) > 1:
        return "modules behind the head"
    return None if of_scores(loss) is not None else f"{type(loss).__name__} makes pairs of its own"


def save_reranker(model: Any, folder: Path) -> None:
    """Adapter and head, or whole model, as ``CrossEncoder(folder)`` loads it."""
    model.save_pretrained(str(folder), create_model_card=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's form to fill in
