"""Writes and connections of this process, seen by an audit hook: which are outside of their folders."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATHS = {
    "os.mkdir": (0, 2), "os.remove": (0, 1), "os.rmdir": (0, 1), "os.truncate": (0, None), "os.chmod": (0, 2),
    "os.chown": (0, 3), "os.rename": (1, 3), "os.link": (1, 3), "os.symlink": (1, 2),
}  # fmt: skip
"""Event -> where its arguments hold the path that is written, and the descriptor that it is relative to."""


class Watch:
    """Installed for the life of the process, looks while it is told to."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] = ()
        self.seen: list[str] = []
        self._busy = False
        sys.addaudithook(self._hook)

    def begin(self, allowed: Sequence[Path]) -> None:
        """Look from now on; writes below ``allowed`` are fine."""
        self.seen = []
        self.allowed = tuple(os.path.realpath(path) for path in allowed)

    def end(self) -> list[str]:
        """What was seen, and look no more."""
        self.allowed = ()
        return self.seen

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.allowed or self._busy:
            return
        self._busy = True
        try:
            self._look(event, arguments)
        finally:
            self._busy = False

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITES and isinstance(path, str | bytes):
                self._judge(event, os.fsdecode(path), None)
        elif event in PATHS:
            place, relative = PATHS[event]
            if isinstance(arguments[place], str | bytes):
                fd = arguments[relative] if relative is not None and relative < len(arguments) else None
                self._judge(event, os.fsdecode(arguments[place]), fd)
        elif event in ("os.system", "os.exec", "os.posix_spawn"):
            self.seen.append(f"{event} {arguments[0]!r}")
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            self.seen.append(f"{event} {arguments[1]!r}")

    def _judge(self, event: str, path: str, fd: Any) -> None:
        if isinstance(fd, int) and fd >= 0 and not os.path.isabs(path):
            path = os.path.join(os.readlink(f"/proc/self/fd/{fd}"), path)
        whole = os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))
        inside = any(whole == root or whole.startswith(root + os.sep) for root in self.allowed)
        if not inside and whole not in ("/dev/null", "/dev/tty"):
            self.seen.append(f"{event} {whole}")
