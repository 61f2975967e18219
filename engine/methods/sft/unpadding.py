"""Padded batches of any collator as rows without padding, for a model on the fast path.

TRL's own collator and a script's keep deciding what is in a batch and what is supervised; only the padding
goes. A batch that says more than ids, labels and where documents are stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .collation import IGNORED
from .packed_steps import TokenRow

BOUNDS = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}
"""What padding-free collators add for attention kernels; the positions say the same."""
UNDERSTOOD = {"input_ids", "labels", "attention_mask", "position_ids"} | BOUNDS


@dataclass(frozen=True)
class UnpaddingCollator:
    """What another collator makes, as ``rows`` of tokens and ``labels`` (1, T) for whoever counts them.

    Args:
        padded: collates rows of a data set to tensors.
    """

    padded: Callable[[list[Any]], dict[str, Any]]

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        batch = self.padded(rows)
        documents = token_rows(batch)
        if documents is None:
            return batch
        labels_T = np.concatenate([document.labels for document in documents] or [np.zeros(0, np.int64)])
        return {"rows": documents, "labels": torch.from_numpy(labels_T)[None]}


def token_rows(batch: Mapping[str, Any]) -> list[TokenRow] | None:
    """The documents of a batch, their padding left out; None where that would change what is computed.

    Args:
        batch: ``input_ids`` and ``labels`` (B, T), with ``attention_mask`` (B, T), or with ``position_ids``
            (B, T) that restart at each document, or with neither.
    """
    if not {"input_ids", "labels"} <= set(batch) <= UNDERSTOOD or batch["input_ids"].dim() != 2:
        return None
    ids_BT, labels_BT = batch["input_ids"].numpy(), batch["labels"].numpy().astype(np.int64)
    mask, positions = batch.get("attention_mask"), batch.get("position_ids")
    if positions is not None and mask is None:
        bounds = [_restarts(row_T) for row_T in positions.numpy()]
    elif positions is None and mask is not None and mask.dim() == 2:
        bounds = [_masked(*pair) for pair in zip(mask.numpy(), labels_BT, strict=True)]
    elif positions is None and mask is None:
        bounds = [[(0, ids_BT.shape[1])]] * len(ids_BT)
    else:
        return None
    documents = []
    for ids_T, labels_T, spans in zip(ids_BT, labels_BT, bounds, strict=True):
        if spans is None:
            return None
        for start, stop in spans:
            labels = labels_T[start:stop].copy()
            labels[0] = IGNORED  # no token comes before it that could predict it
            documents.append(TokenRow(ids_T[start:stop], labels, width=len(ids_T)))
    return documents


def _masked(mask_T: np.ndarray, labels_T: np.ndarray) -> Sequence[tuple[int, int]] | None:
    """The one span under a mask; None for a mask with holes, or labels outside of it."""
    (places,) = np.nonzero(mask_T)
    if (labels_T[mask_T == 0] != IGNORED).any():
        return None
    if not len(places):
        return []
    start, stop = int(places[0]), int(places[-1]) + 1
    return [(start, stop)] if stop - start == len(places) else None


def _restarts(positions_T: np.ndarray) -> Sequence[tuple[int, int]] | None:
    """Spans that count from 0; None where positions do anything else. Padding is a run of zeros."""
    (starts,) = np.nonzero(positions_T == 0)
    stops = np.append(starts[1:], len(positions_T))
    expected_T = np.arange(len(positions_T)) - np.repeat(starts, stops - starts) if len(starts) else None
    if expected_T is None or starts[0] != 0 or not np.array_equal(expected_T, positions_T):
        return None
    return [(int(a), int(b)) for a, b in zip(starts, stops, strict=True) if b - a > 1]
