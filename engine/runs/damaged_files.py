"""Which file of a run could not be read as JSON: Python's error keeps its text, and not its name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ..errors import WhetError


def damaged_file(error: json.JSONDecodeError, directory: Path) -> Path | None:
    """The file of the run in ``directory``, of the run that a job works on, of its model or of its prepared
    rows whose text is no JSON; None where the text comes from elsewhere, as from an answer of a model."""
    return next((path for path in _files(directory) if _text(path) == error.doc), None)


def _text(path: Path) -> str | None:
    """None of what cannot be read now: it is not what was read, and an error is being described."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _files(directory: Path) -> Iterator[Path]:
    from .store import RunDir

    run = RunDir(directory)
    yield from sorted(directory.rglob("*.json"))
    try:
        job = run.load_job()
        if job is not None and job.parent is not None:
            yield from sorted((directory.parent / job.parent).rglob("*.json"))
        plan = run.load_plan()
    except WhetError:
        return  # of a job on files, or unreadable itself
    for folder in (plan.model.path, plan.data.dir):
        yield from sorted(folder.glob("*.json"))
