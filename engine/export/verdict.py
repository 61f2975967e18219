"""The verdict of a smoke test: one proof a step, the worst one decides. Light."""

from __future__ import annotations

import hashlib
import json
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..runs.files import checksum
from .files import write_text

Status = Literal["pass", "warn", "fail"]
RANK: dict[Status, int] = {"pass": 0, "warn": 1, "fail": 2}
EXIT_FAIL = 3
"""Exit code of a verdict ``fail``."""
DIGEST_FILE = "template_digest"
"""Beside trained weights: the hash of the chat template they were trained with."""
PIECES, PIECE_BYTES = 512, 16 << 10
"""Of a large file, looked at in even distances: another training changes whole matrices, which are wider."""


class Proof(BaseModel):
    """What one step of the smoke test saw."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        description="vocabulary, template, bos, stops, configuration, weights, logits, answers; of embedding "
        "models special tokens, vectors, neighbours; llama.cpp for a crash; merge; reload; adapter."
    )
    status: Status
    summary: str = Field(description="One sentence, the fact.")
    evidence: dict[str, Any] = Field(default_factory=dict)
    fix: str = Field(default="", description="What to do about it, in the imperative; empty for pass.")


class Verdict(BaseModel):
    """The proofs of one GGUF file, or of a folder of merged weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: Status
    proofs: list[Proof]
    gguf: str
    file_type: str = ""
    seconds: float = 0.0
    fingerprint: str = Field(default="", description="Of the file that was proven, see :func:`fingerprint`.")
    crc32: dict[str, int] = Field(
        default_factory=dict, description="Of the whole content of each weight file, by its name."
    )

    @classmethod
    def of(cls, proofs: list[Proof], gguf: Path, **rest: Any) -> Verdict:
        worst = max((proof.status for proof in proofs), key=RANK.__getitem__)
        return cls(status=worst, proofs=proofs, gguf=str(gguf), **rest)

    def failures(self) -> list[Proof]:
        return [proof for proof in self.proofs if proof.status == "fail"]


def fingerprint(path: Path) -> str:
    """Identity of a large file without reading it whole: SHA-256 of its size and of pieces from all over it.

    Files of up to 8 MiB are read whole. A model folder's is that of its weight files together.
    """
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        return hashlib.sha256("".join(map(fingerprint, files)).encode()).hexdigest()
    stat = path.stat()
    return _of_bytes(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=256)
def _of_bytes(path: Path, inode: int, size: int, modified: int, changed: int) -> str:
    """Read once as long as the filesystem says that nothing changed: lists of files ask again and again."""
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for number in range(PIECES):
            file.seek(max(0, size - PIECE_BYTES) * number // (PIECES - 1))
            digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()


def verdict_path(gguf: Path) -> Path:
    """Where a verdict lies: beside the GGUF or folder, ``<name>.verdict.json``."""
    return (
        gguf.with_suffix(".verdict.json")
        if gguf.suffix == ".gguf"
        else gguf.with_name(f"{gguf.name}.verdict.json")
    )


def save_verdict(verdict: Verdict, gguf: Path) -> Path:
    """Write it beside the file, with the sums of what was proven."""
    summed = verdict.model_copy(update={"crc32": _sums(gguf)})
    return write_text(verdict_path(gguf), summed.model_dump_json(indent=2) + "\n")


def conclude(proof: Proof, path: Path, file_type: str, started: float) -> Verdict:
    """The verdict that one proof decides, saved beside what it is about.

    Args:
        path: a file, or a folder of weights.
        started: when the proof began, as ``time.monotonic`` says it.
    """
    seconds = round(time.monotonic() - started, 2)
    verdict = Verdict.of([proof], path, file_type=file_type, seconds=seconds, fingerprint=fingerprint(path))
    save_verdict(verdict, path)
    return verdict


def load_verdict(gguf: Path, *, whole: bool = False) -> Verdict | None:
    """The saved verdict of exactly this file; None without one, or when the file changed since.

    A large file is recognised by pieces of it; with ``whole`` all of it is read, so that a single flipped bit
    is noticed.
    """
    path = verdict_path(gguf)
    if not path.is_file():
        return None
    verdict = Verdict.model_validate(json.loads(path.read_text(encoding="utf-8")))
    if verdict.fingerprint != fingerprint(gguf):
        return None
    return None if whole and verdict.crc32 and verdict.crc32 != _sums(gguf) else verdict


def _sums(proven: Path) -> dict[str, int]:
    files = sorted(proven.glob("*.safetensors")) if proven.is_dir() else [proven]
    return {file.name: checksum(file) for file in files}
