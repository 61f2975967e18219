"""What a GGUF of an embedding model has no place for, as sentences for findings and card. Light."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..models.sentence_folder import SentenceFolder, read_sentence_folder
from .gguf.types import GGUFType

NEARLY_EXACT = 8.0
"""Bits a weight from which an embedding model's vectors keep their neighbours; below that they lose most."""
SHOWN = 60
"""Characters of a prompt that are quoted."""


def embedding_notes(folder: Path, kinds: Sequence[GGUFType]) -> tuple[str, ...]:
    """About the model in ``folder`` and the types that were made of it.

    Raises:
        WhetError: as :func:`read_sentence_folder`.
    """
    sentence = read_sentence_folder(folder)
    lossy = [kind.name for kind in kinds if kind.bits_per_weight < NEARLY_EXACT]
    notes = [*sentence.notes, _length_note(sentence)]
    if sentence.prompts:
        quoted = ", ".join(f"{name}: {_short(prompt)}" for name, prompt in sentence.prompts.items())
        notes.append(f"A GGUF holds no prompts: put the trained ones in front of a text yourself ({quoted}).")
    if sentence.max_tokens is not None:
        notes.append(f"Training cut texts at {sentence.max_tokens} tokens; llama.cpp does not cut them.")
    if lossy:
        notes.append(
            f"Embedding models lose most by quantisation: f16 and q8_0 are nearly exact, {', '.join(lossy)} "
            "less so; see what the proof says of the vectors."
        )
    return tuple(notes)


def _length_note(sentence: SentenceFolder) -> str:
    pooled = {"mean": "the mean of all tokens", "cls": "the first token", "last": "the last token"}
    what = f"An embedding model: it gives one vector a text, {pooled[sentence.pooling]}"
    if sentence.normalize:
        return (
            f"{what}, divided by its length. llama-server and Ollama divide by themselves, llama-cpp-python "
            "with embed(..., normalize=True)."
        )
    return (
        f"{what}, of its own length. llama-server and Ollama divide by it unasked (llama-server: "
        "--embd-normalize -1 keeps it)."
    )


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= SHOWN else prompt[:SHOWN] + "...")
