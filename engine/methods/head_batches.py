"""A padded batch of texts with labels, packed on the CPU for a head on an encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional

from ..models.fast_path.encoders import HeadTexts, Reads
from .filling import coarser
from .graphed import Shape, StaticBatch
from .packed_texts import pack_texts

IGNORED = -100
"""Label of what counts for nothing."""


@dataclass(frozen=True)
class HeadBatch(StaticBatch):
    """Packed texts and their labels.

    Args:
        texts: as the encoder reads them.
        labels: a row for each text; or (1, T), one for each token, where the head reads every token.
        tokens: of the texts, without filling.
    """

    texts: HeadTexts
    labels: torch.Tensor
    tokens: int

    @property
    def shape(self) -> Shape:
        packed = self.texts.packed
        return len(packed.input_ids_T), len(packed.offsets), (packed.longest, self.texts.texts)

    def tensors(self) -> list[torch.Tensor]:
        return [*self.texts.tensors(), self.labels]

    def pinned(self) -> HeadBatch:
        return replace(self, texts=self.texts.pin(), labels=self.labels.pin_memory())

    def on(self, device: torch.device) -> HeadBatch:
        labels = self.labels.to(device, non_blocking=True)
        return replace(self, texts=self.texts.to(device), labels=labels)


@dataclass(frozen=True)
class Packing:
    """How a head's batches are packed.

    Args:
        reads: what the head looks at.
        multiple: tokens are filled up to a multiple of this, of large batches to a coarser one.
        filler: token id.
    """

    reads: Reads
    multiple: int
    filler: int

    def pack(self, padded: Mapping[str, Any], labels: torch.Tensor) -> HeadBatch | None:
        """None where a text has no token: transformers' own pass says what is read of it then.

        Args:
            padded: ``input_ids``, ``attention_mask`` and perhaps ``token_type_ids``, (B, T) on the CPU.
            labels: (B, ...), or (B, T) where the head reads every token.
        """
        mask_BT = padded["attention_mask"].bool()
        lengths_N = mask_BT.sum(1).numpy()
        if not lengths_N.min():
            return None
        ids_T = padded["input_ids"][mask_BT].numpy()
        packed = pack_texts(ids_T, lengths_N, coarser(self.multiple, len(ids_T)), self.filler)
        behind = (0, len(packed.input_ids_T) - len(ids_T))
        types_T = None
        if "token_type_ids" in padded:
            types_T = functional.pad(padded["token_type_ids"][mask_BT], behind)
        if self.reads == "each":
            labels = functional.pad(labels[mask_BT], behind, value=IGNORED)[None]
        return HeadBatch(HeadTexts(packed, types_T, len(lengths_N), self.reads), labels, len(ids_T))


@dataclass(frozen=True)
class PackingCollator:
    """Rows -> ``texts`` (:class:`HeadBatch`), or what they are collated to without it.

    Args:
        collate: rows -> the method's own batch.
        pack: such a batch -> one with ``texts``; itself where it cannot be packed.
        valid_label_columns: which sentence-transformers' trainer asks its collator for.
    """

    collate: Callable[[Sequence[Any]], dict[str, Any]]
    pack: Callable[[dict[str, Any]], dict[str, Any]]
    valid_label_columns: Sequence[str] = ()

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        return self.pack(self.collate(rows))
