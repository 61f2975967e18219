"""Rows of speech recognition: recordings with what is said in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .pairs import chosen, first_text
from .rows import RawRow
from .tables import Column, Layout

SOUNDS = ("audio", "audio_path", "audio_filepath", "speech", "file", "path")
SAID = ("text", "sentence", "transcription", "transcript", "normalized_text")
LANGUAGES = ("language", "locale")


def speech_layout(rows: Sequence[RawRow], columns: Mapping[str, str]) -> Layout | None:
    """A recording and its text; see :func:`.pairs.embedding_layout`."""
    return chosen(rows, columns, (_recorded,))


def _recorded(value: Mapping[str, Any]) -> Layout | None:
    sound, text = next((name for name in SOUNDS if name in value), None), first_text(value, SAID)
    if sound is None or text is None:
        return None
    return Layout("speech", {"audio": Column("audio", sound), "text": Column("text", text)})
