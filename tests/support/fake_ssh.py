"""A stand-in for ssh: runs the remote command here, by a shell as sshd does, or fails as it is told to."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.fake_runs import SOURCE

SCRIPT = """#!{python} -P
import json, os, signal, subprocess, sys
from pathlib import Path

folder = Path({folder!r})
calls = folder / "calls.jsonl"
with open(calls, "a") as file:
    file.write(json.dumps([os.getpid(), sys.argv[1:]]) + "\\n")
number = len(calls.read_text().splitlines())
told = json.loads((folder / "told.json").read_text())
if told["fails_from"] and number >= told["fails_from"]:
    sys.exit(print(told["words"], file=sys.stderr) or told["code"])
print(told["greeting"], flush=True)
environment = os.environ | {{"PATH": told["path"]}}
done = subprocess.Popen(["/bin/sh", "-c", sys.argv[-1]], stdout=subprocess.PIPE, env=environment)
for count, line in enumerate(done.stdout):
    if number == 1 and count == told["drops_after"]:
        sys.stdout.buffer.write(line[: len(line) // 2])
        sys.stdout.flush()
        done.kill()
        sys.exit(255)
    if count == told["hangs_after"]:
        signal.pause()
    sys.stdout.buffer.write(told["replaced"].get(str(count), "").encode() or line)
    sys.stdout.flush()
sys.exit(done.wait())
"""


@dataclass
class FakeSSH:
    """The stand-in, first on this process's PATH; ``remote_path`` is the PATH of the other side."""

    folder: Path
    remote_path: str

    def tell(self, **changes: Any) -> None:
        """``drops_after``: lines of the first connection before it is lost in the middle of the next.
        ``hangs_after``: lines before it stays silent. ``replaced``: lines that come instead, by their number.
        ``fails_from``: the number of the first connection that fails, with ``code`` and ``words``.
        ``greeting``: what a login script prints. ``path``: the other side's PATH."""
        usual = {
            "drops_after": -1, "hangs_after": -1, "fails_from": 0, "code": 255, "words": "", "replaced": {},
            "greeting": "", "path": self.remote_path,
        }  # fmt: skip
        (self.folder / "told.json").write_text(json.dumps(usual | changes))
        (self.folder / "calls.jsonl").write_text("")

    @property
    def calls(self) -> list[list[str]]:
        """The arguments of each connection so far."""
        return [words for _, words in self._noted()]

    @property
    def pids(self) -> list[int]:
        """The process of each connection so far."""
        return [pid for pid, _ in self._noted()]

    def _noted(self) -> list[tuple[int, list[str]]]:
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]


def install(folder: Path, patch: pytest.MonkeyPatch) -> FakeSSH:
    """Put the stand-in first on the PATH, and this checkout's whet on that of the other side."""
    here, there = folder / "here", folder / "there"
    here.mkdir()
    there.mkdir()
    _program(here / "ssh", SCRIPT.format(python=sys.executable, folder=str(folder)))
    code = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from whet.tui.cli import main; main()"
    _program(
        there / "whet", f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -c {shlex.quote(code)} "$@"\n'
    )
    patch.setenv("PATH", f"{here}{os.pathsep}{os.environ['PATH']}")
    fake = FakeSSH(folder, f"{there}{os.pathsep}/usr/bin{os.pathsep}/bin")
    fake.tell()
    return fake


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
