"""A full disk is told as one, also where a library that met it says something else."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from whet.engine.errors import WhetError
from whet.engine.export.files import atomic_file, disk_full_said

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free", "code"), [(3 << 10, "export.disk_full"), (3 << 30, "gguf.quantize_failed")])
def test_llama_cpp_does_not_say_that_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, code: str
) -> None:
    left = iter([1 << 40, free, free])  # before the first byte, and when it fails
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 41, 0, next(left)))
    file = tmp_path / "a.gguf"
    with pytest.raises(WhetError) as caught, atomic_file(file, 100) as partial, disk_full_said(partial):
        partial.write_bytes(b"half")
        raise WhetError("gguf.quantize_failed", "basic_ios::clear: iostream error", "Use q8_0.")
    assert caught.value.code == code and list(tmp_path.iterdir()) == []
