"""A row's sound as samples: from a path, a file's bytes, or an array, mixed to one channel and resampled.

WAV is read here; other kinds of files by soundfile where it is installed. Light: numpy, scipy.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WhetError
from .named_files import content_of, named_path, path_below
from .rows import RowError, preview_of, repr_of
from .wav import read_wav

if TYPE_CHECKING:
    import numpy as np

SILENCE = 1e-4
"""A sound whose loudest sample is below this (-80 dB of full scale) holds nothing to hear."""
LOUDEST = 4.0
"""Full scale is 1; packed sound may be decoded to a little more. Far above are whole numbers of 16 bits."""
FULL_SCALE = 32767
RATES = (1000, 192_000)
"""Samples a second; a filter between two rates is as long as they are large."""
MOST_BYTES = 256 << 20
"""Of an audio file: five minutes of four channels at 48 kHz in 32 bits are less."""
CACHES = ("HF_HUB_CACHE", "HF_DATASETS_CACHE")
UNKNOWN = 2**63 - 1
"""Frames of a file whose writer did not know the end."""
KINDS = (b"fLaC", b"OggS", b"ID3", b"FORM")
"""How files begin that soundfile reads, beside MPEG frames."""


def read_audio(held: Any, folder: Path | None, rate: int, longest: float) -> bytes:
    """A row's sound as 16-bit samples of one channel.

    Args:
        held: a path, the bytes of a file, or as `datasets` gives it: `{"path", "bytes"}` or
            `{"array", "sampling_rate"}`.
        folder: what a relative path begins at; None for rows that others wrote elsewhere, a data set of the
            hub: they name no files but those that came with them.
        rate: samples a second that are wanted.
        longest: seconds.

    Raises:
        RowError: the sound cannot be read, is silent or too long.
        WhetError: ``data.audio_reader`` for a kind of file that needs soundfile, where that is missing.
    """
    import numpy as np

    samples, own = _samples(held, folder, longest)
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if samples.ndim != 1:
        raise RowError(f"the audio has {samples.ndim} dimensions")
    _check_rate(own)
    if not len(samples):
        raise RowError("the audio holds no samples")
    if not np.isfinite(samples).all():
        raise RowError("the audio holds samples that are no finite numbers")
    seconds = len(samples) / own
    if seconds > longest:
        raise RowError(_too_long(seconds, longest))
    loudest = float(np.abs(samples).max())
    if loudest < SILENCE:
        raise RowError("the audio is silent")
    if loudest > LOUDEST:
        raise RowError(f"the audio's samples reach {loudest:,.0f}, expected numbers from -1 to 1")
    even = resampled(samples, own, rate)
    return bytes((even.clip(-1, 1) * FULL_SCALE).round().astype("<i2").tobytes())


def samples_of(stored: bytes) -> np.ndarray:
    """What :func:`read_audio` gave, as float32 between -1 and 1."""
    import numpy as np

    found: np.ndarray = np.frombuffer(stored, dtype="<i2").astype(np.float32) / FULL_SCALE
    return found


def resampled(samples: np.ndarray, own: int, rate: int) -> np.ndarray:
    """By a polyphase filter, without aliasing."""
    if own == rate:
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(own, rate)
    found: np.ndarray = resample_poly(samples, rate // common, own // common)
    return found


def is_downloaded(path: str) -> bool:
    """Whether a file lies where the hub's clients keep what they download."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    kept = [home, *(Path(os.environ[name]) for name in CACHES if name in os.environ)]
    real = named_path(path, "audio file").resolve()
    return any(real.is_relative_to(one.expanduser().resolve()) for one in kept)


def _samples(held: Any, folder: Path | None, longest: float) -> tuple[np.ndarray, int]:
    """Float samples [time] or [time, channels] and how many there are a second."""
    if isinstance(held, Mapping) and held.get("array") is not None:
        return _array(held)
    if isinstance(held, Mapping):
        held = held.get("bytes") or held.get("path")
    if isinstance(held, str) and held.strip():
        if folder is None and not is_downloaded(held):
            raise RowError(f"names the file {preview_of(held)!r}; rows of the hub must hold their recordings")
        file = path_below(held, folder, "audio file")
        return _decoded(content_of(file, MOST_BYTES, "audio file"), longest)
    if isinstance(held, bytes) and held:
        return _decoded(held, longest)
    raise RowError(
        f"the audio is {type(held).__name__}, expected a path, a file's bytes or an array with its "
        "sampling_rate"
    )


def _array(held: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    import numpy as np

    rate = held.get("sampling_rate")
    if not isinstance(rate, int) or rate < 1:
        raise RowError(f"the audio's sampling_rate is {repr_of(rate)}, expected samples a second")
    try:
        samples = np.asarray(held["array"], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise RowError(f"the audio's array is not of numbers: {error}") from error
    # `datasets` gives channels first, soundfile last.
    return (samples.T if samples.ndim == 2 and samples.shape[0] < samples.shape[1] else samples), rate


def _decoded(content: bytes, longest: float) -> tuple[np.ndarray, int]:
    """Samples of a file's content; packed ones are not unpacked beyond ``longest`` seconds."""
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE":
        return read_wav(content)
    # Bits 11 to 13 of an MPEG frame's header.
    mpeg = content[:1] == b"\xff" and len(content) > 1 and content[1] & 0xE0 == 0xE0
    if not (content.startswith(KINDS) or mpeg):
        raise RowError("the audio is no WAV, FLAC, Ogg, MP3 or AIFF file")
    if find_spec("soundfile") is None:
        raise WhetError(
            "data.audio_reader",
            "The audio files are not WAV, and soundfile, which reads FLAC, Ogg and MP3, is not installed.",
            "pip install 'whet[audio]', or convert the files to WAV.",
        )
    import soundfile

    try:
        with soundfile.SoundFile(BytesIO(content)) as file:
            rate = int(file.samplerate)
            _check_rate(rate)
            if longest * rate < file.frames < UNKNOWN:
                raise RowError(_too_long(file.frames / rate, longest))
            samples = file.read(int(longest * rate) + 1, dtype="float32", always_2d=False)
    except soundfile.SoundFileError as error:
        raise RowError(f"the audio cannot be read: {error}") from error
    return samples, rate


def _check_rate(rate: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise RowError(f"the audio has {rate:,} samples a second, expected {RATES[0]:,} to {RATES[1]:,}")


def _too_long(seconds: float, longest: float) -> str:
    return f"the audio is {seconds:.1f} s long, the model hears {longest:g} s: cut it"
