"""A verdict is that of one file: it does not outlive a change of its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from whet.engine.export.verdict import Proof, Verdict, fingerprint, load_verdict, save_verdict

PROOF = Proof(name="logits", status="pass", summary="as trained")


def large(path: Path, megabytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(megabytes << 20)
    return path


def overwrite(path: Path, start: int, size: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\x01" * size)


@pytest.mark.parametrize("start", [9, 30, 54])
def test_another_matrix_in_the_midst_is_another_file(tmp_path: Path, start: int) -> None:
    gguf = large(tmp_path / "a.gguf", 64)
    save_verdict(Verdict.of([PROOF], gguf, fingerprint=fingerprint(gguf)), gguf)
    assert load_verdict(gguf) is not None
    overwrite(gguf, start << 20, 1 << 20)
    assert load_verdict(gguf) is None


def test_of_small_files_each_byte_counts(tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    folder.mkdir()
    weights = large(folder / "model.safetensors", 8)
    seen = {fingerprint(folder)}
    for place in (0, 123_457, (4 << 20) + 1, (8 << 20) - 1):
        overwrite(weights, place, 1)
        seen.add(fingerprint(folder))
    assert len(seen) == 5
