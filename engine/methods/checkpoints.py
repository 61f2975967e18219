"""Checkpoint folders that are whole or do not count.

A checkpoint is ``step-000030/`` with a ``MANIFEST.json`` (file name -> size and CRC-32) that is written last,
by rename, after every other file is on the disk. A folder without it is what a dead worker left behind.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from ..runs.failures import describe_failure
from ..runs.files import private_dir, sync_path
from ..runs.manifest import MANIFEST, changed_files, write_manifest

STEP = re.compile(r"^step-(\d{6,})$")


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint after optimizer step ``step`` lies."""
    return root / f"step-{step:06d}"


def step_of(folder: Path) -> int:
    """The optimizer step a checkpoint folder is named after."""
    match = STEP.match(folder.name)
    if match is None:
        raise ValueError(f"{folder} is not a checkpoint folder")
    return int(match.group(1))


def write_checkpoint(folder: Path, write: Callable[[Path], None]) -> int:
    """Let ``write`` fill ``folder``, then make it count. Returns its size in bytes.

    Nothing else is touched, so earlier checkpoints stand whatever happens here. What was written of a failed
    checkpoint is deleted.

    Raises:
        WhetError: ``run.disk_full``; any other error of ``write`` as it is.
    """
    remove(folder)
    private_dir(folder)
    try:
        write(folder)
        sizes = {str(path.relative_to(folder)): _synced_size(path) for path in _files(folder)}
        write_manifest(folder, MANIFEST, sizes)
    except Exception as error:
        # Described before the deletion: it gives back the very space whose lack is the reason.
        failure = describe_failure(error, folder)
        shutil.rmtree(folder)
        if failure.code == "run.disk_full":
            raise failure from error
        raise
    sync_path(folder.parent)
    return sum(sizes.values())


def is_complete(folder: Path) -> bool:
    """Whether the manifest is there and every file it names has its size."""
    return (folder / MANIFEST).is_file() and not changed_files(folder, content=False)


def list_complete(root: Path) -> list[Path]:
    """Complete checkpoints, oldest step first."""
    return [folder for folder in step_folders(root) if is_complete(folder)]


def last_complete(root: Path) -> Path | None:
    """The newest complete checkpoint."""
    return next(reversed(list_complete(root)), None)


def delete_incomplete(root: Path) -> list[Path]:
    """Delete what dead workers left behind; returns the folders deleted."""
    incomplete = [folder for folder in step_folders(root) if not is_complete(folder)]
    for folder in incomplete:
        remove(folder)
    return incomplete


def remove(folder: Path) -> None:
    """Delete a checkpoint, manifest first: half deleted it does not count any more."""
    if folder.exists():
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


def rotate(root: Path, keep: int, protect: Collection[int] = ()) -> None:
    """Delete all but the newest ``keep`` complete checkpoints; steps in ``protect`` stay besides."""
    others = [folder for folder in list_complete(root) if step_of(folder) not in protect]
    for folder in others[:-keep]:
        remove(folder)


def step_folders(root: Path) -> list[Path]:
    """Checkpoint folders, whole or not, oldest step first."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if STEP.match(path.name)), key=step_of)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _synced_size(path: Path) -> int:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size
