"""Real workers as forks of a process that has the libraries loaded, so that a start costs no imports.

    python -P nursery.py    (one request a line on standard input, answers on standard output)

``{"run": DIR}`` or ``{"push": DIR, "part": ..., "repo": ..., "hub": URL}``, with these additions:

- ``"die": {"at": REGEX, "count": N, "after": S}``: the child kills itself with SIGKILL, ``S`` seconds after
  the ``N``-th time it opens a file for writing, renames or removes something whose name matches;
- ``"limit": {"memory": BYTES}`` or ``{"file": BYTES}``: how much more memory, or how large a file, it may
  have.

A child leads a session of its own, as a launched worker does, and its standard output and error go to
the run's worker.log. The answers are ``{"pid": PID}`` at once and ``{"status": WAIT STATUS}`` at its end.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


class FileWatch:
    """Sees what this process does to files, through the interpreter's audit events."""

    def __init__(self, request: dict[str, Any]) -> None:
        die = request.get("die")
        self.pattern = re.compile(die["at"]) if die else None
        self.left: int = die["count"] if die else 0
        self.after: float = die["after"] if die else 0.0
        self.lock = threading.RLock()

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & WRITES and not isinstance(path, int)
            if not writes and not (isinstance(mode, str) and set(mode) & set("wax+")):
                return
            self.saw(f"open {path}")
        elif event in CHANGES:
            self.saw(f"{event} {arguments[0]}")

    def saw(self, what: str) -> None:
        with self.lock:
            if self.pattern is None or self.left == 0 or not self.pattern.search(what):
                return
            self.left -= 1
            if self.left > 0:
                return
        if self.after:
            threading.Thread(target=_die, args=(self.after,), daemon=True).start()
        else:
            _die(0.0)


def _die(after: float) -> None:
    time.sleep(after)
    os.kill(os.getpid(), signal.SIGKILL)


def work(request: dict[str, Any]) -> int:
    """What a child does; its exit status."""
    if limit := request.get("limit", {}).get("memory"):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + limit, used + limit))
    if limit := request.get("limit", {}).get("file"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails with an errno, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if "push" in request:
        return push(request)
    from whet.engine.runs import worker

    return worker.main([request["run"]])


def push(request: dict[str, Any]) -> int:
    from huggingface_hub import constants

    from whet.engine.errors import WhetError
    from whet.engine.export.hub import push_part
    from whet.engine.runs.store import RunDir

    constants.ENDPOINT = request["hub"]
    try:
        push_part(RunDir(Path(request["push"])), request["part"], request["repo"], force=True)
    except WhetError as error:
        print(error.code, error.message, file=sys.stderr)
        return 1
    return 0


def child(request: dict[str, Any]) -> None:
    """Never returns."""
    code = 70
    try:
        os.setsid()
        log = os.open(
            Path(request.get("run") or request["push"]) / "worker.log",
            os.O_WRONLY | os.O_CREAT | os.O_APPEND,
            0o600,
        )
        nowhere = os.open(os.devnull, os.O_RDONLY)
        for fd, target in ((nowhere, 0), (log, 1), (log, 2)):
            os.dup2(fd, target)
        sys.addaudithook(FileWatch(request).audit)
        code = work(request)
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    preload()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(request)
        print(json.dumps({"pid": pid}), file=answers, flush=True)
        print(json.dumps({"status": os.waitpid(pid, 0)[1]}), file=answers, flush=True)


def preload() -> None:
    """All that a worker imports on its way, none of which starts a thread."""
    from importlib import import_module

    for module in PRELOADED:
        import_module(module)


PRELOADED = (
    "whet.engine.methods.sft.job",
    "whet.engine.export.of_run",
    "whet.engine.export.merging",
    "whet.engine.export.gguf.convert",
    "whet.engine.export.gguf.quantize",
    "whet.engine.export.hub",
    "whet.engine.runs.worker",
    "huggingface_hub.hf_api",
)


if __name__ == "__main__":
    main()
