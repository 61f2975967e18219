"""What whet needs of a SentencePiece ``tokenizer.model``: its pieces and rules of normalisation. Light.

The file is one protocol-buffer message (sentencepiece_model.proto). The wire format is simple enough to be
read here: each field is a number, one of four ways to write a value, and the value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import WhetError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

# Numbers of the fields read, by message.
PIECES, NORMALIZER_SPEC = 1, 3
PIECE_TEXT, PIECE_SCORE = 1, 2
CHARSMAP = 2


@dataclass(frozen=True)
class Piece:
    """One token and what orders the merging: the highest score first."""

    text: str
    score: float


@dataclass(frozen=True)
class SentencePieceModel:
    pieces: list[Piece]
    charsmap: bytes

    @classmethod
    def read(cls, path: Path) -> SentencePieceModel:
        """Raises WhetError ``tokenizer.broken`` for anything but a SentencePiece model."""
        try:
            return cls.parse(path.read_bytes())
        except (ValueError, IndexError, struct.error) as error:
            raise WhetError(
                "tokenizer.broken",
                f"{path} is not a SentencePiece model: {error}",
                "Download the model again, or remove the file: tokenizer.json is enough.",
            ) from error

    @classmethod
    def parse(cls, data: bytes) -> SentencePieceModel:
        """Raises ValueError, IndexError or struct.error for broken data."""
        pieces, charsmap = [], b""
        for number, value in _fields(data):
            if number == PIECES:
                pieces.append(_piece(_message(value)))
            elif number == NORMALIZER_SPEC:
                charsmap = next((_message(v) for n, v in _fields(_message(value)) if n == CHARSMAP), b"")
        if not pieces:
            raise ValueError("it has no pieces")
        return cls(pieces, charsmap)


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    (score,) = struct.unpack("<f", _message(fields.get(PIECE_SCORE, b"\0" * 4)))
    return Piece(_message(fields.get(PIECE_TEXT, b"")).decode(), score)


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where a text or a message belongs")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field: an integer for varints, otherwise the raw bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == BYTES:
            length, at = _varint(data, at)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"unknown wire type {wire} at byte {at}")
        if at + length > len(data):
            raise ValueError(f"it ends within a field at byte {at}")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and the position after it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
