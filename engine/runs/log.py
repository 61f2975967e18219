"""Pages of a worker's log, from its end on, whatever its size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from ..errors import WhetError

BLOCK = 64 << 10
SCANNED = 64 << 20
"""Most bytes that one page reads in search of its lines."""
LONGEST_LINE = 1 << 20
"""A longer line comes in pieces."""
SHOWN = 4000
"""Characters of a line that are shown."""


class LogPage(BaseModel):
    """Some lines of a log in their order."""

    model_config = ConfigDict(frozen=True)

    lines: list[str]
    start: int = Field(description="Byte the page begins at: `before` of the page above; 0 is the top.")
    size: int = Field(description="Bytes of the whole log.")


def read_log(path: Path, lines: int, before: int | None = None, search: str = "") -> LogPage:
    """The last ``lines`` lines that lie before byte ``before`` and contain ``search``, in any case.

    A page may have fewer lines than were asked for when the search went through 64 MiB; go on from its
    ``start``. Of a line that a progress bar wrote over, the last state is shown. A missing log is empty.
    Raises WhetError ``log.range`` for numbers out of range.
    """
    if lines < 1 or (before is not None and before < 0):
        raise WhetError(
            "log.range", f"lines={lines}, before={before}.", "lines begin at 1, and before (bytes) at 0."
        )
    if not path.exists():
        return LogPage(lines=[], start=0, size=0)
    found: list[str] = []
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        end = start = size if before is None else min(before, size)
        wanted = search.lower()
        for start, line in _backwards(file, end):
            text = line.rstrip(b"\r\n").rpartition(b"\r")[2].decode(errors="replace")
            if wanted in text.lower():
                found.append(text[:SHOWN])
            if len(found) == lines or end - start >= SCANNED:
                break
    return LogPage(lines=found[::-1], start=start, size=size)


def _backwards(file: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    """The lines before byte ``end``, last first, each with the byte it begins at."""
    rest = b""  # of a line whose beginning was not read yet
    while end > 0:
        start = max(0, end - BLOCK)
        file.seek(start)
        data = file.read(end - start) + rest
        whole = data.find(b"\n", 0, -1) + 1 if start > 0 else 0
        if start > 0 and whole == 0 and len(data) < LONGEST_LINE:
            end, rest = start, data
            continue
        at = start + len(data)
        for line in reversed(BytesIO(data[whole:]).readlines()):
            at -= len(line)
            yield at, line
        end, rest = start, data[:whole]
