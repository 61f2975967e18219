"""Rows of speaking language models: texts with the codes of their sound, or with the sound itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .pairs import chosen, first_text
from .rows import RawRow, RowError
from .speech import SAID, SOUNDS
from .tables import Column, Layout

CODES = ("codes", "codes_list", "audio_codes", "semantic_codes")
VOICE = ("global_codes", "global_tokens")
SPEAKERS = ("speaker", "source", "voice", "speaker_id")

Codes = list[int] | list[list[int]]


def spoken_layout(rows: Sequence[RawRow], columns: Mapping[str, str]) -> Layout | None:
    """A text with codes, or with sound that a codec makes codes of; see :func:`.pairs.embedding_layout`."""
    return chosen(rows, columns, (_coded, _sounding))


def _coded(value: Mapping[str, Any]) -> Layout | None:
    text, codes = first_text(value, SAID), next((name for name in CODES if name in value), None)
    if text is None or codes is None:
        return None
    return Layout("codes", {"codes": Column("codes", codes), "text": Column("text", text)})


def _sounding(value: Mapping[str, Any]) -> Layout | None:
    text, sound = first_text(value, SAID), next((name for name in SOUNDS if name in value), None)
    if text is None or sound is None:
        return None
    return Layout("speech", {"audio": Column("audio", sound), "text": Column("text", text)})


def codes_of(value: Mapping[str, Any], name: str) -> Codes:
    """A field of whole numbers, or of a list of them for each codebook. Raises RowError."""
    held = value.get(name)
    if not isinstance(held, list) or not held:
        raise RowError(f"field {name!r} is {_short(held)}, expected a list of codes")
    lists = held if isinstance(held[0], list) else [held]
    for one in lists:
        if not isinstance(one, list) or not one:
            raise RowError(f"field {name!r} holds {_short(one)}, expected a list of codes a codebook")
        wrong = next((code for code in one if type(code) is not int or code < 0), None)
        if wrong is not None:
            raise RowError(f"field {name!r} holds {_short(wrong)}, expected whole numbers from 0 on")
    return held


def speaker_of(value: Mapping[str, Any]) -> str | None:
    """As the row says; None where it does not."""
    held = next((value[name] for name in SPEAKERS if value.get(name) is not None), None)
    return None if held is None or not str(held).strip() else str(held).strip()


def _short(held: object) -> str:
    text = repr(held)
    return text if len(text) <= 40 else f"{text[:39]}\u2026"
