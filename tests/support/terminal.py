"""A real terminal: whet in a tmux server of its own, typed into and read as a person would."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import TracebackType

from support.fake_runs import SOURCE

WHET = f"{shlex.quote(sys.executable)} -P -c 'from whet.tui.cli import main; main()'"


class Terminal:
    """One tmux server with one window; a context manager that ends it."""

    def __init__(self, home: Path, size: tuple[int, int] = (80, 24), folder: Path | None = None) -> None:
        self.socket = f"whet-{uuid.uuid4().hex[:8]}"
        values = {"WHET_HOME": str(home), "PYTHONPATH": str(SOURCE), "WHET_OFFLINE": "1", "LANG": "C.UTF-8"}
        settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in values.items())
        self._tmux(
            "-f", os.devnull, "new-session", "-d", "-x", str(size[0]), "-y", str(size[1]),
            *(["-c", str(folder)] if folder else []), f"env {settings} {WHET}",
        )  # fmt: skip

    def _tmux(self, *words: str) -> str:
        done = subprocess.run(["tmux", "-L", self.socket, *words], check=True, capture_output=True, text=True)
        return done.stdout

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """As a dropped connection does it: all that hangs on the terminal gets SIGHUP."""
        subprocess.run(["tmux", "-L", self.socket, "kill-server"], check=False, capture_output=True)

    def press(self, *keys: str) -> None:
        """Keys by tmux's names: ``Enter``, ``Escape``, ``n``."""
        self._tmux("send-keys", *keys)

    def shown(self) -> str:
        """The screen as text."""
        return self._tmux("capture-pane", "-p")

    def wait_for(self, words: str, seconds: float = 60) -> str:
        """The screen once ``words`` stand on it."""
        deadline = time.monotonic() + seconds
        while words not in (seen := self.shown()):
            assert time.monotonic() < deadline, f"{words!r} did not come in {seconds} s:\n{seen}"
            time.sleep(0.1)
        return seen
