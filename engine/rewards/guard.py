"""The process that computes rewards, seen from training: asked with a deadline, killed with its children."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..checks.env_flags import is_secret
from .endings import signal_name

MODULE = "whet.engine.rewards.process"
BLOCK = 65536
CLOSING_SECONDS = 1.0


class Silent(Exception):
    """No answer in time; the process is dead by now."""


class Died(Exception):
    """The process ended instead of answering; the argument says how."""


class Guarded:
    """One process, from its start on.

    Args:
        environment: names of variables that it sees although they are withheld otherwise.
        quiet: drop what functions print, which otherwise joins this process's standard error.
    """

    def __init__(self, environment: list[str], quiet: bool = False) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            bufsize=0,
            env=clean(os.environ, environment),
            start_new_session=True,
        )
        self._unread = b""
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)

    def tell(self, message: dict[str, Any], seconds: float) -> None:
        """Send one message; that the process is gone shows when it is asked. Raises Silent when it does not
        read."""
        deadline = time.monotonic() + seconds
        pipe = self.process.stdin
        assert pipe is not None
        left = memoryview(json.dumps(message).encode() + b"\n")
        with suppress(BrokenPipeError), selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_WRITE)
            while left:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.kill()
                    raise Silent
                left = left[pipe.write(left) or 0 :]

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to one message. Raises Silent or Died."""
        deadline = time.monotonic() + seconds
        self.tell(message, seconds)
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.kill()
                    raise Silent
                read = os.read(pipe, BLOCK)
                if not read:
                    raise Died(self._ending())
                self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Let it end by itself, and kill it and its children where it does not."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(CLOSING_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kill its process group; returns when the process is gone."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _ending(self) -> str:
        self.kill()
        code = self.process.returncode
        return f"signal {signal_name(-code)}" if code < 0 else f"exit status {code}"


def clean(environment: Mapping[str, str], shown: list[str]) -> dict[str, str]:
    """An environment without secrets and without a GPU, but for the variables ``shown``."""
    kept = {name: value for name, value in environment.items() if name in shown or not is_secret(name)}
    withheld = {"HF_TOKEN_PATH": os.devnull, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "CUDA_VISIBLE_DEVICES": ""}
    return kept | {name: value for name, value in withheld.items() if name not in shown}
