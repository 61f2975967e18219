"""Which file of a run could not be read as JSON: Python's error keeps its text, and not its name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ..errors import WhetError


def damaged_file(error: json.JSONDecodeError, directory: Path) -> Path | None:
    """The file of the run in ``directory``, of its model or of its prepared rows whose text is no JSON; None
    where the text comes from elsewhere, as from an answer of a model."""
    for path in _files(directory):
        if path.read_text(encoding="utf-8", errors="replace") == error.doc:
            return path
    return None


def _files(directory: Path) -> Iterator[Path]:
    from .store import RunDir

    yield from sorted(directory.rglob("*.json"))
    try:
        plan = RunDir(directory).load_plan()
    except WhetError:
        return  # of a job on files, or unreadable itself
    for folder in (plan.model.path, plan.data.dir):
        yield from sorted(folder.glob("*.json"))
