"""Checkpoints whose bytes are not those that were written: found before a resume, set aside, told of."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..findings import Finding, Fix
from .checkpoints import MANIFEST, changed_files, step_folders


def set_aside_damaged(root: Path) -> list[Finding]:
    """Rename finished checkpoints that changed since to ``damaged-step-000030``.

    A resume then goes on from the one before them. Nothing is deleted: some of the files may be of use.

    All are held against their manifests by name and size; contents are read from the newest on, up to the
    first one that is as it was written.

    Returns:
        T05 for each, a warning.
    """
    found, intact = [], False
    for folder in reversed(step_folders(root)):
        if not (folder / MANIFEST).is_file():
            continue  # never finished
        files = changed_files(folder, content=not intact)
        intact = intact or not files
        if files:
            aside = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(folder, aside)
            found.append(_finding(folder, aside, files))
    return found


def _finding(folder: Path, aside: Path, files: list[str]) -> Finding:
    return Finding(
        id="T05",
        severity="warning",
        title=f"{folder.name} is damaged and was set aside, since {', '.join(files[:3])} changed after "
        "it was written: the run goes on from an earlier one, or from the beginning.",
        evidence={"files": files[:10], "lies in": str(aside)},
        fix=Fix(
            text="Look at the disk (`dmesg`, `smartctl -a`); delete the folder when nothing in it is of use."
        ),
    )
