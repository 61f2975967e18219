"""What a task's head reads of an encoder, so that packed texts can be put under transformers' own head.

The head's modules and code stay the model's: it gets one row a text, of the one vector that it would look at,
or one row of all tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
)

from whet.kernels.segment_pool import segment_pool

from ..packed import PackedTokens

Reads = Literal["first", "mean", "each"]
"""A text's first token, the mean of its tokens, or every token by itself."""

FIRST = (BertForSequenceClassification, RobertaForSequenceClassification, XLMRobertaForSequenceClassification)
EACH = (
    BertForTokenClassification,
    ModernBertForTokenClassification,
    RobertaForTokenClassification,
    XLMRobertaForTokenClassification,
)
POOLINGS: dict[str, Reads] = {"cls": "first", "mean": "mean"}
"""ModernBERT's names."""


@dataclass(frozen=True)
class HeadTexts:
    """Packed texts under a head.

    Args:
        packed: the texts, and what fills up behind.
        types_T: int64, segment of each token; None is 0.
        texts: documents that are no filling.
        reads: what the head looks at.
    """

    packed: PackedTokens
    types_T: torch.Tensor | None
    texts: int
    reads: Reads

    def tensors(self) -> list[torch.Tensor]:
        """All of them."""
        return [*self.packed.tensors(), *([] if self.types_T is None else [self.types_T])]

    def pin(self) -> HeadTexts:
        """In pinned memory."""
        types_T = None if self.types_T is None else self.types_T.pin_memory()
        return replace(self, packed=self.packed.pin(), types_T=types_T)

    def to(self, device: torch.device) -> HeadTexts:
        """On another device, without waiting for the copy."""
        types_T = None if self.types_T is None else self.types_T.to(device, non_blocking=True)
        return replace(self, packed=self.packed.to(device), types_T=types_T)

    def read(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """What the head gets: (texts, 1, D), or (1, T, D) where it reads every token."""
        if self.reads == "each":
            return hidden_TD[None]
        pooled_ND = segment_pool(hidden_TD, self.packed.offsets, self.reads)[: self.texts]
        return pooled_ND.to(hidden_TD.dtype)[:, None]


def head_reads(model: Any) -> Reads | None:
    """What the head of a task's model looks at; None for a head that is not known here.

    Args:
        model: transformers' model, or PEFT's wrapper around one.
    """
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if type(inner) is ModernBertForSequenceClassification:
        return POOLINGS.get(inner.config.classifier_pooling)
    if type(inner) in FIRST:
        return "first"
    return "each" if type(inner) in EACH else None
