"""Sound is read from files, bytes and arrays, mixed and resampled; what cannot be is said."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from support.tiny_whisper import RATE, tone, write_wav

from whet.engine.data import audio
from whet.engine.data.audio import read_audio, samples_of
from whet.engine.data.rows import RowError
from whet.engine.data.wav import read_wav
from whet.engine.errors import WhetError


def read(held: Any, folder: Path = Path()) -> np.ndarray:
    return samples_of(read_audio(held, folder, RATE, 30))


def wav(kind: int, bits: int, data: bytes, channels: int = 1, extensible: bool = False) -> bytes:
    """A RIFF file with a chunk of odd length before the samples, as recorders write them."""
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", 0xFFFE if extensible else kind, channels, RATE, RATE * frame, frame, bits)
    if extensible:
        form += struct.pack("<HHIH", 22, bits, 0, kind) + bytes(14)
    chunks = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    chunks += b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def test_every_coding_of_wav_gives_the_same_samples() -> None:
    sound = tone(440).astype(np.float64)
    packed = (sound * (2**31 - 1)).astype("<i4")
    codings = {
        (1, 8): ((sound * 127 + 128).round().astype(np.uint8).tobytes(), 2e-2),
        (1, 16): ((sound * 32767).astype("<i2").tobytes(), 1e-4),
        (1, 24): (packed.view(np.uint8).reshape(-1, 4)[:, 1:].tobytes(), 1e-6),
        (1, 32): (packed.tobytes(), 1e-6),
        (3, 32): (sound.astype("<f4").tobytes(), 1e-6),
        (3, 64): (sound.astype("<f8").tobytes(), 1e-6),
    }
    for (kind, bits), (data, exact) in codings.items():
        for extensible in (False, True):
            samples, rate = read_wav(wav(kind, bits, data, extensible=extensible))
            assert rate == RATE
            np.testing.assert_allclose(samples, sound, atol=exact)
    with pytest.raises(RowError, match="coding 7 of 8 bits is not read"):
        read_wav(wav(7, 8, bytes(80)))


def test_paths_bytes_and_arrays_are_the_same_sound(tmp_path: Path) -> None:
    sound = tone(440)
    file = write_wav(tmp_path / "sounds" / "a.wav", sound)
    wanted = read(str(file))
    np.testing.assert_allclose(wanted, sound, atol=1e-4)
    for held in (
        "sounds/a.wav",
        file.read_bytes(),
        {"path": "sounds/a.wav", "bytes": None},
        {"path": "elsewhere.wav", "bytes": file.read_bytes()},
        {"array": sound.tolist(), "sampling_rate": RATE},
        {"array": np.stack([sound, sound]), "sampling_rate": RATE},
    ):
        np.testing.assert_allclose(read(held, tmp_path), wanted, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling_keeps_pitch_and_loudness(rate: int) -> None:
    sound = read({"array": tone(440, rate=rate), "sampling_rate": rate})
    assert len(sound) == pytest.approx(RATE / 2, abs=2)
    middle = slice(800, -800)
    np.testing.assert_allclose(sound[middle], tone(440)[: len(sound)][middle], atol=0.01)
    if rate > 2 * RATE:  # above what the new rate can carry nothing may remain
        assert np.abs(read({"array": tone(12000, rate=rate), "sampling_rate": rate})[middle]).max() < 0.01


def test_channels_are_mixed(tmp_path: Path) -> None:
    both = np.stack([tone(300), tone(900)], axis=1)
    mixed = read(str(write_wav(tmp_path / "a.wav", both)))
    np.testing.assert_allclose(mixed, both.mean(1), atol=1e-4)


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        ({"array": [0.1, float("nan")], "sampling_rate": RATE}, "no finite numbers"),
        ({"array": [], "sampling_rate": RATE}, "holds no samples"),
        ({"array": [0.1]}, "sampling_rate is None"),
        ({"array": ["a"], "sampling_rate": RATE}, "not of numbers"),
        ({"array": tone(300, 31), "sampling_rate": RATE}, "31.0 s long"),
        (7, "the audio is int"),
        (b"RIFF....WAVE", "has no samples"),
        (b"\x00" * 40, "no WAV, FLAC"),
        ({"array": [0.1, 0.2], "sampling_rate": 2**32 - 5}, "4,294,967,291 samples a second"),
        ({"array": [1000, -3000], "sampling_rate": RATE}, "reach 3,000, expected numbers from -1 to 1"),
        ("a long caption " * 40, "there is no audio file"),
        ("~nobody-of-that-name/a.wav", "expected a path"),
        ("\ud800.wav", "expected a path"),
    ],
)
def test_what_is_no_sound_is_said(held: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        read(held)
    assert reason in caught.value.reason


def test_rows_of_the_hub_name_only_what_came_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    mine = write_wav(tmp_path / "mine.wav", tone(440))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "linked.wav").symlink_to(mine)
    for held in (str(mine), {"path": str(mine), "bytes": None}, str(tmp_path / "cache" / "linked.wav")):
        with pytest.raises(RowError, match="must hold their recordings"):
            read_audio(held, None, RATE, 30)
    came = write_wav(tmp_path / "cache" / "a.wav", tone(440))
    assert read_audio({"path": str(came), "bytes": None}, None, RATE, 30) == read_audio(
        mine.read_bytes(), None, RATE, 30
    )


def test_files_that_unpack_to_too_much_are_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    file = BytesIO()
    soundfile.write(file, np.zeros(40 * 1000), 1000, format="FLAC")
    unpacked: list[int] = []
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, frames, **more: unpacked.append(frames))
    with pytest.raises(RowError, match=r"40.0 s long, the model hears 30 s"):
        read(file.getvalue())
    assert not unpacked


def test_other_kinds_of_files_need_soundfile(monkeypatch: pytest.MonkeyPatch) -> None:
    file = BytesIO()
    soundfile.write(file, tone(440), RATE, format="FLAC")
    np.testing.assert_allclose(read(file.getvalue()), tone(440), atol=1e-4)
    with pytest.raises(RowError, match="cannot be read"):
        read(b"fLaC" + bytes(40))
    monkeypatch.setattr(audio, "find_spec", lambda name: None)
    with pytest.raises(WhetError, match="not WAV, and soundfile") as caught:
        read(file.getvalue())
    assert "whet[audio]" in caught.value.hint
