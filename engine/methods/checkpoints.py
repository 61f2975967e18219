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

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..runs.failures import describe_failure
from ..runs.files import checksum, private_dir, sync_path, write_atomic

MANIFEST = "MANIFEST.json"
SUMS = ".manifest.json"
"""The same beside trained weights, hidden: they go out into the world without it."""
STEP = re.compile(r"^step-(\d{6,})$")


class Manifest(BaseModel):
    """What a whole checkpoint consists of, by names relative to its folder."""

    model_config = ConfigDict(frozen=True)

    version: int = 2
    files: dict[str, int] = Field(description="Bytes of each file.")
    crc32: dict[str, int] = Field(
        default_factory=dict, description="Of each file's content; version 1 had none."
    )


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
        manifest = Manifest(files=sizes, crc32={name: checksum(folder / name) for name in sizes})
        write_atomic(folder / MANIFEST, manifest.model_dump_json(indent=1).encode())
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


def changed_files(folder: Path, *, content: bool, manifest: str = MANIFEST) -> list[str]:
    """Names in a folder's manifest whose file is gone or has another size; the manifest's own where it cannot
    be read. With ``content`` also where bytes differ, for which all files are read, at disk speed."""
    try:
        told = Manifest.model_validate_json((folder / manifest).read_bytes())
    except ValidationError:
        return [manifest]
    changed = [name for name, size in told.files.items() if _size(folder / name) != size]
    if content:
        others = [(name, crc) for name, crc in told.crc32.items() if name not in changed]
        changed += [name for name, crc in others if checksum(folder / name) != crc]
    return changed


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


def _size(path: Path) -> int | None:
    """In bytes; None where there is no file."""
    return path.stat().st_size if path.is_file() else None


def _synced_size(path: Path) -> int:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size
