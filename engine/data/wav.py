"""Samples of a WAV file: PCM of 8 to 32 bits and floating point, as the format's public description says."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from .rows import RowError

if TYPE_CHECKING:
    import numpy as np

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE


def read_wav(content: bytes) -> tuple[np.ndarray, int]:
    """Float32 samples [time] or [time, channels] between -1 and 1, and how many there are a second.

    Raises RowError for a file that is broken or coded otherwise.
    """
    kind = channels = rate = bits = 0
    place = 12
    while place + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, place)
        place += 8
        if name == b"fmt " and size >= 16 and place + size <= len(content):
            kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", content, place)
            if kind == EXTENSIBLE and size >= 26:
                (kind,) = struct.unpack_from("<H", content, place + 24)
        elif name == b"data":
            if not channels:
                break
            if place + size > len(content) and size != 0xFFFFFFFF:  # a stream's writer did not know the end
                raise RowError(
                    f"the WAV file is cut off: {len(content) - place:,} of {size:,} bytes of samples"
                )
            return _scaled(content[place : place + size], kind, bits, channels), rate
        place += size + size % 2
    raise RowError("the WAV file has no samples")


def _scaled(data: bytes, kind: int, bits: int, channels: int) -> np.ndarray:
    import numpy as np

    width = bits // 8
    if (kind, bits) not in {(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)}:
        raise RowError(f"the WAV file's coding {kind} of {bits} bits is not read: convert it to 16-bit PCM")
    data = data[: len(data) - len(data) % (width * channels)]
    samples: np.ndarray
    if kind == FLOAT:
        samples = np.frombuffer(data, dtype=f"<f{width}").astype(np.float32)
    elif bits == 8:  # alone without a sign
        samples = (np.frombuffer(data, dtype=np.uint8).astype(np.float32) - 128) / 128
    elif bits == 24:
        parts = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3)
        wide = np.zeros((len(parts), 4), dtype=np.uint8)
        wide[:, 1:] = parts
        samples = wide.view("<i4").ravel().astype(np.float32) / 2**31
    else:
        samples = np.frombuffer(data, dtype=f"<i{width}").astype(np.float32) / 2 ** (bits - 1)
    return samples.reshape(-1, channels) if channels > 1 else samples
