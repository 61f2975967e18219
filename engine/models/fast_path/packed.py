"""Rows laid end to end, without padding: what the fast path reads.

T tokens of N documents. Documents never see one another; positions restart at each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch


@dataclass(frozen=True)
class PackedTokens:
    """One packed row of documents.

    Args:
        input_ids_T: int64.
        positions_T: int32, 0, 1, ... within each document.
        offsets: int32 (N + 1), where each document starts, T at the end. May end in repeated T.
        longest: tokens of the longest document; a bound will do.
        documents: how many there are; with ``longest`` it tells whether all have the same length.
    """

    input_ids_T: torch.Tensor
    positions_T: torch.Tensor
    offsets: torch.Tensor
    longest: int
    documents: int

    def tensors(self) -> list[torch.Tensor]:
        """All of them."""
        return [self.input_ids_T, self.positions_T, self.offsets]

    def pin(self) -> PackedTokens:
        """In pinned memory, from which copies to a GPU need not wait."""
        names = ("input_ids_T", "positions_T", "offsets")
        return replace(self, **{name: getattr(self, name).pin_memory() for name in names})

    def to(self, device: torch.device) -> PackedTokens:
        """On another device, without waiting for the copy."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("input_ids_T", "positions_T", "offsets")
        }
        return replace(self, **moved)


def pack_rows(
    rows: Sequence[np.ndarray | Sequence[int]], *, multiple: int = 1, filler: int = 0
) -> PackedTokens:
    """Lay rows of token ids end to end.

    Args:
        rows: ids of each document, none empty.
        multiple: T is a multiple of this; what is missing becomes one more document of ``filler``.
        filler: token id.
    """
    lengths = [len(row) for row in rows]
    missing = -sum(lengths) % multiple
    if missing:
        rows, lengths = [*rows, np.full(missing, filler)], [*lengths, missing]
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    ids = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    return PackedTokens(
        input_ids_T=torch.from_numpy(ids),
        positions_T=torch.from_numpy(positions),
        offsets=torch.from_numpy(offsets),
        longest=max(lengths),
        documents=len(lengths),
    )


def fill_up(packed: PackedTokens, multiple: int, filler: int = 0) -> PackedTokens:
    """The same with one more document of ``filler``, where tokens are no multiple of ``multiple``."""
    tokens = len(packed.input_ids_T)
    missing = -tokens % multiple
    if not missing:
        return packed
    ids_T, positions_T, offsets = packed.input_ids_T, packed.positions_T, packed.offsets
    more = torch.arange(missing, dtype=positions_T.dtype, device=positions_T.device)
    return PackedTokens(
        input_ids_T=torch.cat([ids_T, ids_T.new_full((missing,), filler)]),
        positions_T=torch.cat([positions_T, more]),
        offsets=torch.cat([offsets, offsets.new_full((1,), tokens + missing)]),
        longest=max(packed.longest, missing),
        documents=packed.documents + 1,
    )


def pack_padded(
    input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor | None
) -> tuple[PackedTokens, torch.Tensor]:
    """Padded rows as a packed one, and the flat places (T,) their tokens had in (B x T).

    Padding may be on either side. Waits for the device once, to learn the lengths.
    """
    rows, width = input_ids_BT.shape
    if attention_mask_BT is None:
        places = torch.arange(rows * width, device=input_ids_BT.device)
        lengths = [width] * rows
    else:
        places = attention_mask_BT.reshape(-1).nonzero().squeeze(1)
        lengths = [length for length in attention_mask_BT.sum(1).tolist() if length]
    device = input_ids_BT.device
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    packed = PackedTokens(
        input_ids_T=input_ids_BT.reshape(-1)[places],
        positions_T=torch.from_numpy(positions).to(device),
        offsets=torch.from_numpy(offsets).to(device),
        longest=max(lengths),
        documents=len(lengths),
    )
    return packed, places
