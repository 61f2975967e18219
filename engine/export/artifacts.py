"""What an export holds: each part with its size and the verdict of exactly these bytes. Light."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from .targets.table import TARGETS
from .verdict import Verdict, load_verdict

Kind = Literal[
    "adapter", "model", "merged", "merged_4bit", "fp8", "adapter_gguf", "gguf", "modelfile", "card"
]
NAMED: dict[str, Kind] = {
    "adapter": "adapter",
    "model": "model",
    "merged": "merged",
    "merged-4bit": "merged_4bit",
    "fp8": "fp8",
    "Modelfile": "modelfile",
    "README.md": "card",
}
PROVEN = ("gguf", "merged", *TARGETS)
"""Kinds that have a verdict."""


class Artifact(BaseModel):
    """A file, or a folder of weights."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    path: Path
    bytes: int
    verdict: Verdict | None = None
    """None when it was not proven, or has changed since."""


def list_artifacts(export: Path) -> list[Artifact]:
    """The parts of a run's ``export/``; what is half written has other names and does not count."""
    named = [_artifact(kind, export / name) for name, kind in NAMED.items() if (export / name).exists()]
    adapters = sorted((export / TARGETS["adapter_gguf"].folder).glob("*.gguf"))
    named += [_artifact("adapter_gguf", path) for path in adapters]
    return [*named, *(gguf_artifact(path) for path in sorted(export.glob("*.gguf")))]


def gguf_artifact(path: Path) -> Artifact:
    """One GGUF file."""
    return _artifact("gguf", path)


def _artifact(kind: Kind, path: Path) -> Artifact:
    verdict = load_verdict(path) if kind in PROVEN else None
    return Artifact(kind=kind, path=path, bytes=_bytes(path), verdict=verdict)


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
