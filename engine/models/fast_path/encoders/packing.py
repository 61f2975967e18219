"""Texts laid end to end with few different shapes, so that a CUDA graph serves many batches."""

from __future__ import annotations

import numpy as np
import torch

from ..packed import PackedTokens

LENGTH_STEP = 128
"""The least bound on the longest text: shorter ones run on the same tiles. It is doubled from there on."""


def pack_documents(
    ids_T: np.ndarray, lengths_N: np.ndarray, *, multiple: int = 1, documents: int = 0, filler: int = 0
) -> PackedTokens:
    """Texts as a packed row; what fills up stands behind them, in documents no longer than theirs.

    Args:
        ids_T: token ids of all texts, one after another.
        lengths_N: tokens of each, none 0.
        multiple: T is a multiple of this; with more than 1 the bound on lengths is rounded up too.
        documents: so many at least; those that are missing are empty, behind the filling.
        filler: token id.
    """
    sizes, longest = lengths_N.astype(np.int64), int(lengths_N.max())
    missing = -int(sizes.sum()) % multiple
    if missing:
        whole, rest = divmod(missing, longest)
        sizes = np.concatenate([sizes, np.full(whole, longest), np.full(int(rest > 0), rest)])
        ids_T = np.concatenate([ids_T, np.full(missing, filler, dtype=ids_T.dtype)])
    offsets = np.full(max(len(sizes), documents) + 1, len(ids_T), dtype=np.int32)
    offsets[0] = 0
    offsets[1 : len(sizes) + 1] = np.cumsum(sizes)
    starts = np.repeat(offsets[: len(sizes)].astype(np.int64), sizes)
    fixed = multiple > 1
    return PackedTokens(
        input_ids_T=torch.from_numpy(ids_T.astype(np.int64)),
        positions_T=torch.from_numpy((np.arange(len(starts)) - starts).astype(np.int32)),
        offsets=torch.from_numpy(offsets),
        longest=rounded_length(longest) if fixed else longest,
        # Counted as if all had tokens, so that the same attention is chosen for all batches of a shape.
        documents=len(offsets) - 1 if fixed else len(sizes),
    )


def rounded_length(longest: int) -> int:
    """A bound on a text's length of which there are few: 128, 256, 512, ..."""
    bound = LENGTH_STEP
    while bound < longest:
        bound *= 2
    return bound
