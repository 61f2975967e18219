"""A module of ours in a process of its own, spoken to in JSON lines over its pipes. Light."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import IO, Any


def environment() -> dict[str, str]:
    """Ours, for a process that computes: its OpenMP threads sleep while they wait for one another.

    By default they spin. On two cores that something else used as well, that made training thirteen times
    slower, and sleeping cost nothing. ``OMP_WAIT_POLICY`` in the environment has the last word.
    """
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}


def start(module: str, *arguments: str, stderr: int | IO[bytes]) -> subprocess.Popen[str]:
    """Run ``python -P -m module`` with pipes as standard input and output."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        env=environment(),
    )


def send(process: subprocess.Popen[str], message: dict[str, Any], *, last: bool = False) -> None:
    """Write one line, and close the pipe after the ``last``.

    That the process is gone is not said here: whoever reads its answer learns that, and why.
    """
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
    if last:
        with suppress(BrokenPipeError):
            process.stdin.close()
