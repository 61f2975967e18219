"""Runs that were thrown away lie beside the others, whole, until somebody empties the trash by hand."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import WhetError
from .files import private_dir
from .locks import try_hold
from .store import RunDir, RunStore


def trash(run: RunDir) -> None:
    """Move a run out of the list, its weights and exports with it. Raises WhetError ``run.alive``."""
    lock = try_hold(run.lock)
    if lock is None:
        raise WhetError(
            "run.alive",
            f"Run {run.id} is {run.status()}; a living run is not thrown away.",
            f"End it first: whet stop {run.id}",
        )
    with lock:  # nobody resumes it while it moves
        os.rename(run.path, private_dir(_folder(run.path.parent)) / run.id)


def restore(run_id: str) -> RunDir:
    """Bring a run back from the trash. Raises WhetError ``run.not_in_trash``."""
    runs = RunStore().root
    thrown = _folder(runs) / run_id
    if not thrown.is_dir():
        raise WhetError("run.not_in_trash", f"{thrown} is not there.", f"In the trash: {_names(runs)}.")
    os.rename(thrown, runs / run_id)
    return RunDir(runs / run_id)


def _folder(runs: Path) -> Path:
    return runs.parent / "trash"


def _names(runs: Path) -> str:
    folder = _folder(runs)
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return ", ".join(names[-5:]) or "nothing"
