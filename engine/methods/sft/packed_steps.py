"""From the rows of an optimizer step to packed micro-batches without padding.

The rows of a step stay the rows of that step, in their order; only how many go through at once changes, by a
budget of tokens. The loss is a sum over supervised tokens, so regrouping changes no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ...models.fast_path import PackedTokens, pack_rows
from .collation import IGNORED, PADDED_MULTIPLE, Row, RowStore, padded_length

TOKEN_MULTIPLE = 64
"""Packed rows are filled up to a multiple of this, so that few shapes ever occur."""


@dataclass(frozen=True)
class TokenRow:
    """One document.

    Args:
        input_ids: of its tokens.
        labels: one for each, -100 without loss.
        width: tokens of the padded row it would stand in, which NEFTune's noise goes by; 0 is its own length.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    width: int = 0


@dataclass(frozen=True)
class PaddingFreeCollator:
    """Rows as they are, for :func:`micro_batches`, under ``rows``; ``labels`` (1, T) for whoever counts them.

    The first label of each row is ignored: no token comes before it that could predict it.

    Args:
        bins: where the data set holds bins of row numbers (packing across steps), the rows they point at.
    """

    bins: RowStore | None = None

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        if self.bins is None:
            wide = [[row] for row in rows]
        else:
            wide = [[self.bins[int(index)] for index in each["rows"]] for each in rows]
        longest = max(sum(len(row["input_ids"]) for row in group) for group in wide)
        width = padded_length(longest, PADDED_MULTIPLE)
        documents = [_document(row, width) for group in wide for row in group]
        labels_T = np.concatenate([document.labels for document in documents])
        return {"rows": documents, "labels": torch.from_numpy(labels_T)[None]}


def _document(row: Mapping[str, Any], width: int) -> TokenRow:
    labels = np.array(row["labels"], dtype=np.int64)
    labels[0] = IGNORED
    return TokenRow(np.asarray(row["input_ids"]), labels, width)


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model at once.

    Args:
        packed: the documents.
        places_S: int64, places whose next token is supervised; filled up with 0.
        labels_S: int64, those next tokens; -100 where filled up.
        tokens: of the documents, without filling.
        supervised: labels that count.
        rows: the documents themselves.
    """

    packed: PackedTokens
    places_S: torch.Tensor
    labels_S: torch.Tensor
    tokens: int
    supervised: int
    rows: Sequence[TokenRow]

    def to(self, device: torch.device) -> MicroBatch:
        """On a device, without waiting for the copy."""
        if device.type == "cpu":
            return self
        return replace(
            self,
            packed=self.packed.pin().to(device),
            places_S=self.places_S.pin_memory().to(device, non_blocking=True),
            labels_S=self.labels_S.pin_memory().to(device, non_blocking=True),
        )


def micro_batches(
    rows: Sequence[TokenRow], budget: int, filler: int = 0, multiple: int = TOKEN_MULTIPLE
) -> list[MicroBatch]:
    """Split a step's rows, in order, into packed micro-batches of at most ``budget`` tokens.

    Args:
        rows: of one optimizer step.
        budget: tokens that fit at once; a longer row goes alone.
        filler: token id of what fills a packed row up.
        multiple: of tokens and of supervised places, filled up.
    """
    groups: list[list[TokenRow]] = []
    room = 0
    for row in rows:
        if not groups or len(row.input_ids) > room:
            groups.append([])
            room = budget
        groups[-1].append(row)
        room -= len(row.input_ids)
    return [micro_batch(group, filler, multiple) for group in groups]


def micro_batch(rows: Sequence[TokenRow], filler: int = 0, multiple: int = TOKEN_MULTIPLE) -> MicroBatch:
    """All the rows as one packed micro-batch."""
    packed = pack_rows([row.input_ids for row in rows], multiple=multiple, filler=filler)
    labels_T = np.concatenate([row.labels for row in rows])
    (places,) = np.nonzero(labels_T != IGNORED)
    missing = -len(places) % multiple
    labels = np.concatenate([labels_T[places], np.full(missing, IGNORED)])
    # A row's first label is ignored, so the place before a label is always in the same row.
    before = np.concatenate([places - 1, np.zeros(missing, dtype=np.int64)])
    return MicroBatch(
        packed=packed,
        places_S=torch.from_numpy(before),
        labels_S=torch.from_numpy(labels),
        tokens=len(labels_T),
        supervised=len(places),
        rows=rows,
    )
