"""transformers' trainer for models that write a frame's first code by a backbone, the rest by a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch.nn import functional

from ..classification.trainer import IGNORED, HeadTrainer


class FrameCollator:
    """Text ids, then frames, padded behind.

    Args:
        books: codes of a frame.
    """

    def __init__(self, books: int) -> None:
        self.books = books

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """``input_ids`` [rows, places] (0 where a frame stands), ``labels`` [rows, places, codebooks],
        ``attention_mask`` [rows, places]."""
        texts = [torch.as_tensor(row["input_ids"]) for row in rows]
        frames = [torch.as_tensor(row["frames"]).view(-1, self.books) for row in rows]
        longest = max(len(text) + len(spoken) for text, spoken in zip(texts, frames, strict=True))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full((len(rows), longest, self.books), IGNORED)
        mask = torch.zeros_like(ids)
        for number, (text, spoken) in enumerate(zip(texts, frames, strict=True)):
            end = len(text) + len(spoken)
            ids[number, : len(text)] = text
            labels[number, len(text) : end] = spoken
            mask[number, :end] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class FramesTrainer(HeadTrainer):
    """Cross-entropy of the first codebook, and of all others together, each a mean over the step's codes."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.model_accepts_loss_kwargs = True  # the loss below is a share of the whole step's

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """A step's micro-batches, and how many frames they hold; transformers would count codes."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        own = sum(batch["labels"][..., 0].ne(IGNORED).sum() for batch in self.counting(samples))
        return samples, self.in_all(own)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """In nats: as transformers' own, with the means over the whole step rather than its micro-batches."""
        base = self.accelerator.unwrap_model(model)
        base = base.get_base_model() if isinstance(base, PeftModel) else base
        labels, books = inputs["labels"], inputs["labels"].shape[-1]
        out = model(
            inputs_embeds=embedded(base, inputs["input_ids"], labels),
            attention_mask=inputs["attention_mask"],
            labels=labels,
        )
        written = labels[:, 1:, 0]
        whole = num_items_in_batch if base.training else None
        frames = written.ne(IGNORED).sum() if whole is None else whole
        first = functional.cross_entropy(
            out.logits[:, :-1].flatten(0, 1).float(), written.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        rest = labels[labels[..., 0].ne(IGNORED)][:, 1:]
        others = functional.cross_entropy(
            out.depth_decoder_logits.flatten(0, 1).float(), rest.flatten(), reduction="sum"
        )
        loss = first / frames + others / (frames * (books - 1))
        return (loss, {"loss": loss}) if return_outputs else loss

    def count_tokens(self, inputs: dict[str, Any]) -> int:
        """Places: text tokens and frames."""
        return int(inputs["attention_mask"].sum())


def embedded(base: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What the backbone reads: a text token's vector, or the sum of those of a frame's codes.

    Args:
        base: transformers' CsmForConditionalGeneration.
        ids: [rows, places].
        labels: [rows, places, codebooks]; frames stand where they are no padding.
    """
    speaks = labels[..., 0].ne(IGNORED)
    text = base.embed_text_tokens(ids)
    sound = base.backbone_model.embed_tokens(labels.clamp_min(0))
    return torch.where(speaks[..., None], sound, text)
