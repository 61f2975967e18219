"""Workers that try inputs, from outside: started, asked, replaced when they die or hang."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

HANG = 90.0
"""Seconds without an answer after which a worker is given up; far above what its own limit of CPU time is."""
RENEWED = 400
"""Inputs after which a worker is replaced, so that what one leaves behind in it stays small."""


@dataclass(frozen=True)
class Outcome:
    """What came of an input: ``done``, ``refused`` (with a clear error) or ``finding``."""

    target: str
    number: int
    outcome: str
    why: str
    trace: str = ""
    seconds: float = 0.0


class Worker:
    """One process at a time, in a scratch folder that goes with it."""

    def __init__(self) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="whet-fuzz-"))
        self._process: subprocess.Popen[str] | None = None
        self._asked = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *reason: object) -> None:
        self._end()
        shutil.rmtree(self.scratch, ignore_errors=True)

    @property
    def room(self) -> Path:
        """The folder that the last input was tried in."""
        return self.scratch / "room"

    def ask(self, target: str, seed: int, number: int, kept: Path | None = None) -> Outcome:
        """Try one input, by its number or as it was kept."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        asked = {
            "target": target,
            "seed": seed,
            "number": number,
            "kept": str(kept.resolve()) if kept else None,
        }
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        line = _line_within(process.stdout, HANG)
        if line is None:
            process.send_signal(signal.SIGUSR1)
            _line_within(process.stdout, 2)
            return Outcome(target, number, "finding", f"no answer in {HANG:.0f} s", self._end(), HANG)
        if not line:
            code = process.wait(30)
            return Outcome(target, number, "finding", f"the process died with code {code}", self._end())
        return Outcome(target, number, **json.loads(line))

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._asked < RENEWED:
            self._asked += 1
            return self._process
        self._end()
        self._asked = 1
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("worker.py")), str(self.room)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words("wb"),
            text=True,
            env=_environment(self.scratch),
            start_new_session=True,
        )
        return self._process

    def _end(self) -> str:
        """Kill the process and what it started; its last words."""
        process, self._process = self._process, None
        if process is None:
            return ""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        with self._words("rb") as words:
            return words.read()[-4000:].decode(errors="replace")

    def _words(self, mode: str) -> IO[Any]:
        return open(self.scratch / "words", mode)


def _line_within(pipe: IO[str], seconds: float) -> str | None:
    """The next line, empty at the pipe's end; None where none came in time. Answers are written whole."""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        return pipe.readline() if selector.select(seconds) else None


def _environment(scratch: Path) -> dict[str, str]:
    """Of ours, without a way to the network, to the person's own home, or to bytecode beside the sources."""
    return os.environ | {
        "HOME": str(scratch),
        "HF_HOME": str(scratch / "hub"),
        "HF_HUB_OFFLINE": "1",
        "WHET_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
