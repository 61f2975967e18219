"""The operator's list of models whose own Python code may run, each pinned to one commit."""

from __future__ import annotations

import re
from pathlib import Path

from whet.engine.api import WhetError

PINNED = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}@[0-9a-f]{40}")


def read_remote_code(path: Path) -> frozenset[str]:
    """Lines ``owner/name@commit``; empty ones and what follows ``#`` are skipped.

    Raises WhetError ``remote_code.unpinned`` with the line's number: a branch or tag can move to other code.
    """
    pinned = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        if not PINNED.fullmatch(entry):
            raise WhetError(
                "remote_code.unpinned",
                f"{path}, line {number}: {entry[:120]!r} is not OWNER/NAME@COMMIT (40 hex digits).",
                "Take the commit whose code you have read from the model's page on the hub.",
            )
        pinned.add(entry)
    return frozenset(pinned)
