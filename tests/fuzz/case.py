"""One input: files and a call, made from a number alone, or kept as a folder and read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any


@dataclass(frozen=True)
class Case:
    """``files`` by their path below the input folder; ``call`` is JSON that the target understands."""

    files: dict[str, bytes] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Everything below ``folder``: ``call.json`` and ``files/``."""
        for name, content in self.files.items():
            path = folder / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (folder / "files").mkdir(parents=True, exist_ok=True)
        (folder / "call.json").write_text(json.dumps(self.call))

    @classmethod
    def read(cls, folder: Path) -> Case:
        """What :meth:`write` wrote."""
        files = folder / "files"
        found = {
            str(path.relative_to(files)): path.read_bytes() for path in files.rglob("*") if path.is_file()
        }
        return cls(found, json.loads((folder / "call.json").read_text()))


@dataclass(frozen=True)
class Room:
    """Where one input is tried. Only ``home`` and ``out`` may be written to."""

    folder: Path

    @property
    def files(self) -> Path:
        return self.folder / "files"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def out(self) -> Path:
        return self.folder / "out"


class Fault(AssertionError):
    """The input got through to something that must not happen; the text says what."""


@dataclass(frozen=True)
class Target:
    """What is fuzzed: ``make`` draws an input, ``run`` tries it.

    ``run`` returns, or raises WhetError, or :class:`Fault`; anything else is a finding.
    """

    name: str
    make: Callable[[Random], Case]
    run: Callable[[Case, Room], None]
    share: int = 1
    """Of all inputs, beside the other targets."""
    in_ci: int = 0
    """Inputs that `make test` tries; none of what needs torch or takes seconds."""


def draw(target: Target, seed: int, number: int) -> Case:
    """The input of that number; the same for the same three."""
    return target.make(Random(f"{seed}/{target.name}/{number}"))
