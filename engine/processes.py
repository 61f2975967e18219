"""A module of ours in a process of its own, spoken to in JSON lines over its pipes. Light."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import IO, Any

from .parallel.topology import VARIABLES as RANK_VARIABLES
from .settings import settings

SPIN_COUNT = "10000"
"""How long a waiting OpenMP thread spins before it sleeps. Seconds for 40 steps of the demo on two idle
cores, and for 8 steps beside two busy loops (one or two runs each): sleeping at once 8.3 and 3.2, 10,000
spins 5.1 and 4.7, 100,000 spins 4.8 and 33."""


ALLOCATOR = "expandable_segments:True"
"""PyTorch's GPU allocator grows and shrinks its segments, so that what a freed tensor leaves is no hole:
planned memory is then also what the device must have free."""


def environment() -> dict[str, str]:
    """Ours, for a process that computes: its OpenMP threads spin only briefly while they wait, and GPU memory
    comes in segments that grow.

    It is no rank: what makes this process one (``RANK`` and the like) is left out, else a library in the new
    one would wait for the others.
    What a library compiles through torch lies in whet's home: torch would take a folder of a known name in
    /tmp, which another user can have filled before.
    ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT``, ``PYTORCH_ALLOC_CONF`` or its older name
    ``PYTORCH_CUDA_ALLOC_CONF``, and ``TORCHINDUCTOR_CACHE_DIR`` have the last word.
    """
    ours = {"TORCHINDUCTOR_CACHE_DIR": str(settings().cache / "torchinductor")}
    if "OMP_WAIT_POLICY" not in os.environ:
        ours["GOMP_SPINCOUNT"] = SPIN_COUNT
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        ours["PYTORCH_ALLOC_CONF"] = ALLOCATOR
    inherited = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    return ours | inherited


def start(module: str, *arguments: str, stderr: int | IO[bytes], **variables: str) -> subprocess.Popen[str]:
    """Run ``python -P -m module`` with pipes as standard input and output.

    ``variables`` join its environment.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        env=environment() | variables,
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
