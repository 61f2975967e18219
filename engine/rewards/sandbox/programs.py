"""Run one program that a model wrote, with tests or with input, inside of limits and of the sandbox.

``strict``: the kernel lets it open no socket, start no process, signal none but itself, read no file but
Python's own and the system's libraries, and write none outside an empty folder that is then deleted (seccomp
and Landlock, which need no privilege and hold inside most containers). Where the kernel lacks either, nothing
is run. ``limits`` has only the bounds of time, CPU, memory, files and output, and a clean environment.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal

from ...errors import WhetError
from ..endings import signal_name
from . import harness
from .scratch import scratch_folder

MEGABYTE = 2**20
FILE_BYTES = 16 * MEGABYTE
"""Longest file, and longest output, of a program."""
ANSWER_BYTES = 65536
START_SECONDS = 2.0
"""Allowed on top for Python itself to start, 0.05 s on an idle core."""
SOURCE = Path(__file__).parents[4]
"""Where the package `whet` lies."""
START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from whet.engine.rewards.sandbox.harness import main; main()"
)


@dataclass(frozen=True)
class Limits:
    """Of one program: ``seconds`` of the clock and of CPU, ``memory`` bytes of address space."""

    seconds: float = 5.0
    memory: int = 512 * MEGABYTE
    sandbox: Literal["strict", "limits"] = "strict"


@dataclass(frozen=True)
class Outcome:
    """``passed`` says of each test whether it held, all False where the program did not come so far.

    ``output`` is what it printed; ``ended`` how it ended: `ok`, `exit N`, `signal NAME` or `timeout`.
    """

    passed: list[bool]
    output: str
    ended: str


def run_tests(source: str, tests: Sequence[str], limits: Limits) -> Outcome:
    """Run a program, then each test in its namespace.

    Raises WhetError ``reward.no_sandbox``, or ``reward.no_start`` where Python itself takes too long.
    """
    token = secrets.token_hex(16).encode()
    job = b"".join(_frame(part.encode("utf-8", "replace")) for part in (source, *tests)) + _frame(token)
    answer, output, ended = _run(job, len(tests), limits)
    proof, _, outcomes = answer.partition(b" ")
    if not secrets.compare_digest(proof, token) or len(outcomes) != len(tests):
        outcomes = bytes(len(tests))
    return Outcome([outcome == ord("1") for outcome in outcomes], output, ended)


def run_program(source: str, given: str, limits: Limits) -> Outcome:
    """Run a program with ``given`` as standard input. Raises as :func:`run_tests`."""
    job = _frame(source.encode("utf-8", "replace")) + given.encode("utf-8", "replace")
    _, output, ended = _run(job, -1, limits)
    return Outcome([], output, ended)


def check(limits: Limits) -> None:
    """Raises WhetError ``reward.no_sandbox`` where programs cannot be confined as asked."""
    run_tests("", [], limits)


def _frame(part: bytes) -> bytes:
    return f"{len(part)}\n".encode() + part


def _run(job: bytes, tests: int, limits: Limits) -> tuple[bytes, str, str]:
    """What the harness said after confining itself, what the program printed, how it ended."""
    receive, send = os.pipe()
    answer = b""
    try:
        with (
            scratch_folder() as folder,
            tempfile.TemporaryFile() as printed,
        ):
            process = subprocess.Popen(
                _command(folder, send, tests, limits),
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=subprocess.DEVNULL,
                pass_fds=[send],
                cwd=folder,
                env=_environment(folder),
                start_new_session=True,
            )
            os.close(send)
            ended = _wait(process, job, limits.seconds + START_SECONDS)
            os.set_blocking(receive, False)
            with suppress(BlockingIOError):  # a process that the program left behind may hold it open
                answer = os.read(receive, ANSWER_BYTES)
            printed.seek(0)
            output = printed.read(FILE_BYTES).decode("utf-8", "replace")
    finally:
        os.close(receive)
    if not answer.startswith(harness.CONFINED):
        raise _no_sandbox(answer, ended)
    return answer.removeprefix(harness.CONFINED), output, ended


def _command(folder: str, send: int, tests: int, limits: Limits) -> list[str]:
    numbers = (send, ceil(limits.seconds), limits.memory, FILE_BYTES, tests)
    start = (sys.executable, "-I", "-c", START, str(SOURCE))
    return [*start, folder, limits.sandbox, *(str(number) for number in numbers)]


def _environment(folder: str) -> dict[str, str]:
    """Nothing of ours: no secret, and the same hashes in every run."""
    alone = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    libraries = "LD_LIBRARY_PATH"  # where some builds of Python find themselves
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        **alone,
        **({libraries: os.environ[libraries]} if libraries in os.environ else {}),
    }


def _wait(process: subprocess.Popen[bytes], job: bytes, seconds: float) -> str:
    try:
        process.communicate(job, timeout=seconds)
    except subprocess.TimeoutExpired:
        return "timeout"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode < 0:
        return f"signal {signal_name(-process.returncode)}"
    return "ok" if process.returncode == 0 else f"exit {process.returncode}"


def _no_sandbox(answer: bytes, ended: str) -> WhetError:
    if ended == "timeout":
        return WhetError(
            "reward.no_start",
            "Python did not start in time to run a program of the model.",
            "The machine is too busy, or Python's files are on a slow disk. Mend that, or raise the reward's "
            "seconds, and resume the run.",
        )
    reason = answer.removeprefix(harness.REFUSED).decode("utf-8", "replace") or f"its process ended: {ended}"
    return WhetError(
        "reward.no_sandbox",
        f"Programs of a model cannot be confined here: {reason}.",
        "Train where the kernel has seccomp and Landlock, or set sandbox: limits if this machine is itself "
        "a sandbox.",
    )
