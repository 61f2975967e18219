"""Texts of a batch laid end to end, rounded so that few shapes occur where CUDA graphs are to serve them."""

from __future__ import annotations

import numpy as np
import torch

from ..models.fast_path import PackedTokens
from ..models.fast_path.encoders import pack_documents
from .filling import TOKENS

DOCUMENTS = 64
"""Numbers of offsets are multiples of this."""


def multiple_on(device: torch.device) -> int:
    """What packed rows are filled up to on a device; graphs are a GPU's."""
    return TOKENS if device.type == "cuda" else 1


def pack_texts(ids_T: np.ndarray, lengths_N: np.ndarray, multiple: int, filler: int) -> PackedTokens:
    """Texts as one packed row; see :func:`pack_documents`.

    Args:
        ids_T: token ids of all texts, one after another.
        lengths_N: tokens of each, none 0.
        multiple: T is a multiple of this.
        filler: token id.
    """
    # Filling takes documents of its own, whose number differs from batch to batch: leave room for them.
    room = 0 if multiple == 1 else len(lengths_N) + 1 + multiple // int(lengths_N.max())
    documents = -(-room // DOCUMENTS) * DOCUMENTS
    return pack_documents(ids_T, lengths_N, multiple=multiple, documents=documents, filler=filler)
