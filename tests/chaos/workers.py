"""The other end of :mod:`nursery`: start a worker, kill it at its moment, see that nothing of it is left."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from chaos.kills import Kill
from support.hub_standin import TOKEN

from whet.engine.runs.store import RunDir

TESTS = Path(__file__).parents[1]
LIMIT_SECONDS = 120.0
"""No wait of these tests is longer; whoever runs into it hangs."""
GONE_SECONDS = 20.0
POLL_SECONDS = 0.001


class Hangs(AssertionError):
    """Something did not end."""


class Workers:
    """A nursery, while the block runs."""

    def __init__(self, home: Path, threads: int = 1) -> None:
        variables = {
            "WHET_HOME": str(home),
            "PYTHONPATH": f"{TESTS.parent / 'src'}:{TESTS}",
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
        }
        kept = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("nursery.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=kept | variables,
        )
        self.said_before = 0
        self.answers = queue.SimpleQueue[dict[str, Any]]()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in psutil.Process(self.process.pid).children(recursive=True):
            child.kill()
        self.process.kill()
        self.process.wait(LIMIT_SECONDS)

    def start(self, **request: Any) -> int:
        """Pid of a new worker."""
        assert self.process.stdin is not None
        if "run" in request:
            events = RunDir(Path(request["run"])).events
            self.said_before = events.stat().st_size if events.exists() else 0
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self._answer(LIMIT_SECONDS)["pid"])

    def end(self, pid: int) -> int:
        """The wait status of the worker that was started last. Raises Hangs, also where a process of its
        session outlives it."""
        try:
            status = int(self._answer(LIMIT_SECONDS)["status"])
        except queue.Empty:
            os.kill(pid, signal.SIGKILL)
            raise Hangs(f"worker {pid} did not end in {LIMIT_SECONDS:.0f} s") from None
        left = session_of(pid, GONE_SECONDS)
        if left:
            for process in left:
                process.kill()
            raise Hangs(f"left by worker {pid}: {[process.cmdline() for process in left]}")
        return status

    def attempt(self, run: RunDir, kill: Kill | None = None, **request: Any) -> int:
        """One attempt at a run; its wait status. With a kill that is never met, the run's own end."""
        pid = self.start(run=str(run.path), **request, **(kill.request() if kill is not None else {}))
        if kill is not None and not kill.files:
            if kill.said:
                self.await_words(run, kill)
            time.sleep(kill.after)  # the moment itself, not a wait for something
            if self.answers.empty():
                os.kill(pid, kill.number)
        return self.end(pid)

    def await_words(self, run: RunDir, kill: Kill) -> None:
        """Until the words were said by this attempt, or it has ended."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while self._said(run, kill.said) < kill.count and self.answers.empty():
            if time.monotonic() > deadline:
                raise Hangs(f"{run.id} said {kill.said} not often enough")
            time.sleep(POLL_SECONDS)

    def _said(self, run: RunDir, text: str) -> int:
        if not run.events.exists():
            return 0
        with open(run.events, "rb") as file:
            file.seek(self.said_before)
            return file.read().count(text.encode())

    def _answer(self, seconds: float) -> dict[str, Any]:
        return self.answers.get(timeout=seconds)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(json.loads(line))


def session_of(pid: int, seconds: float) -> list[psutil.Process]:
    """What still runs of a session after so many seconds; empty as soon as nothing does."""
    deadline = time.monotonic() + seconds
    while left := [process for process in psutil.process_iter() if _session(process.pid) == pid]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return left


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0
