"""Models loaded here, put on the fast path: decoders once they have an adapter, encoders at once."""

from __future__ import annotations

from typing import Any

from ..models.fast_path import apply_fast_path, program_of
from ..models.fast_path.encoders import apply_fast_embedder
from .checkpointing import start_checkpointing, stop_checkpointing
from .notes import say
from .state import state_of


def to_fast_path(model: Any, recompute: bool | None) -> None:
    """Let an adapted model train on whet's kernels; what stays on the plain path is said aloud.

    Args:
        model: loaded by `FastLanguageModel`; any other is left alone.
        recompute: activations in the backward pass rather than keep them; None changes nothing.
    """
    state = state_of(model)
    if state is None:
        return
    report = apply_fast_path(model, state.dtype)
    if not report.complete:
        say(f"Parts of this model run on the plain path, which is slower: {report}.")
    if program_of(model) is not None and recompute is not None:
        (start_checkpointing if recompute else stop_checkpointing)(model)


def to_fast_encoder(model: Any, *, aloud: bool = False) -> None:
    """Let an embedding model's encoder, or its decoder once it has an adapter, run on whet's kernels.

    Args:
        model: a `SentenceTransformer` that `FastSentenceTransformer` loaded.
        aloud: say why, where it stays on transformers.
    """
    state = state_of(model[0].model)
    if state is None:
        return
    report = apply_fast_embedder(model[0].model, state.dtype)
    if aloud and not report.complete:
        say(f"This model trains on the plain path, which is slower: {report}.")
