"""From tokenised rows to padded tensors. Shapes: B rows, T tokens (padded to a multiple of eight)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

IGNORED = -100
"""Label of a token without loss; the value torch's cross entropy ignores."""

PADDED_MULTIPLE = 8
"""Padded rows are this many tokens long, or a multiple."""

Row = Mapping[str, Any]


class RowStore(Protocol):
    """Random access to tokenised rows, e.g. a memory-mapped ``datasets.Dataset``."""

    def __getitem__(self, index: int) -> Row: ...


def padded_length(longest: int, multiple: int) -> int:
    """``longest`` rounded up to a multiple, so that tensor cores see whole tiles."""
    return -(-longest // multiple) * multiple


@dataclass(frozen=True)
class PaddingCollator:
    """Rows of ``input_ids`` and ``labels`` to int64 tensors (B, T), padded on the right.

    The first label of each row is ignored whatever the row says: no token comes before it that could predict
    it, so labels and shifted labels have the same number of supervised tokens.
    """

    pad_id: int
    multiple: int = PADDED_MULTIPLE

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        length = padded_length(max(len(row["input_ids"]) for row in rows), self.multiple)
        input_ids_BT = np.full((len(rows), length), self.pad_id, dtype=np.int64)
        labels_BT = np.full((len(rows), length), IGNORED, dtype=np.int64)
        mask_BT = np.zeros((len(rows), length), dtype=np.int64)
        for index, row in enumerate(rows):
            size = len(row["input_ids"])
            input_ids_BT[index, :size] = row["input_ids"]
            labels_BT[index, :size] = row["labels"]
            mask_BT[index, :size] = 1
        labels_BT[:, 0] = IGNORED
        return {
            "input_ids": torch.from_numpy(input_ids_BT),
            "labels": torch.from_numpy(labels_BT),
            "attention_mask": torch.from_numpy(mask_BT),
        }


@dataclass(frozen=True)
class PackingCollator:
    """Bins of row numbers to tensors (B, T); the rows of a bin follow one another, strangers to each other.

    ``position_ids`` restart at each row and there is no attention mask: with the cache off, transformers
    builds the block-diagonal causal mask from the restarts (flash attention takes the sequence offsets from
    them). Padding has position 0 throughout: each pad token is a row of its own, seen by nobody.
    """

    rows: RowStore
    pad_id: int
    multiple: int = PADDED_MULTIPLE

    def __call__(self, bins: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        packed = [[self.rows[int(index)] for index in each["rows"]] for each in bins]
        longest = max(sum(len(row["input_ids"]) for row in rows) for rows in packed)
        shape = (len(packed), padded_length(longest, self.multiple))
        input_ids_BT = np.full(shape, self.pad_id, dtype=np.int64)
        labels_BT = np.full(shape, IGNORED, dtype=np.int64)
        positions_BT = np.zeros(shape, dtype=np.int64)
        for index, rows in enumerate(packed):
            start = 0
            for row in rows:
                end = start + len(row["input_ids"])
                input_ids_BT[index, start:end] = row["input_ids"]
                labels_BT[index, start:end] = row["labels"]
                labels_BT[index, start] = IGNORED
                positions_BT[index, start:end] = np.arange(end - start)
                start = end
        return {
            "input_ids": torch.from_numpy(input_ids_BT),
            "labels": torch.from_numpy(labels_BT),
            "position_ids": torch.from_numpy(positions_BT),
        }


def count_tokens(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Tokens of a batch without padding, as a 0-d tensor on the batch's device.

    A packed batch has no mask: its rows are found by their positions (0 followed by 1 begins one).
    """
    if "attention_mask" in batch:
        return batch["attention_mask"].sum()
    if "position_ids" in batch:
        positions_BT = batch["position_ids"]
        begins = (positions_BT[:, :-1] == 0) & (positions_BT[:, 1:] == 1)
        return (positions_BT > 0).sum() + begins.sum()
    return torch.tensor(batch["input_ids"].numel(), device=batch["input_ids"].device)


def count_supervised(labels_BT: torch.Tensor) -> torch.Tensor:
    """Labels that have a token before them, 0-d: what the loss is a mean over."""
    return labels_BT[..., 1:].ne(IGNORED).sum()
