"""Who asked for what that writes: one JSON line a call, appended to ``$WHET_HOME/audit.jsonl``."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from .results import Cleaner

LONGEST_ARGUMENT = 300


class Audit:
    """Appends; a line is one write, so that several servers can share the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._cleaner = Cleaner()

    def write(self, who: str, tool: str, arguments: dict[str, Any], outcome: str) -> None:
        """One call and how it ended: `ok`, or the error's code. Secrets in arguments are left out.

        Raises OSError when the file cannot be written: what cannot be recorded is not done quietly.
        """
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "who": self._cleaner.text(who, 100),
            "tool": tool,
            "arguments": {
                self._cleaner.text(str(name), 60): self._cleaner.text(
                    json.dumps(value, ensure_ascii=False, default=str), LONGEST_ARGUMENT
                )
                for name, value in arguments.items()
            },
            "outcome": outcome,
        }
        with self._lock:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(fd, json.dumps(line, ensure_ascii=False).encode() + b"\n")
            finally:
                os.close(fd)
