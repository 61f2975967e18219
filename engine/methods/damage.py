"""Checkpoints and weights whose bytes are not those that training wrote: found before they are used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..errors import WhetError
from ..findings import Finding, Fix
from ..runs.manifest import MANIFEST, SUMS, changed_files
from .checkpoints import last_complete, step_folders


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


def changed_weights(trained: Path) -> list[str]:
    """Files of trained weights that are not as training wrote them; none where it kept no sums."""
    if not (trained / SUMS).is_file():
        return []
    return [name for name in changed_files(trained, content=True, manifest=SUMS) if name != SUMS]


def refuse_changed(trained: Path, checkpoints: Path) -> None:
    """Raise WhetError ``export.damaged`` for weights that changed.

    What is made of them would be proven against the same wrong weights.
    """
    names = [name for name in changed_weights(trained) if name.endswith(".safetensors")]
    if names:
        last = last_complete(checkpoints)
        also = f" The run's last checkpoint, {last}, holds weights too." if last is not None else ""
        raise WhetError(
            "export.damaged",
            f"{trained / names[0]} is not as training wrote it: the disk, or somebody, changed it.",
            f"Put the file back from a copy.{also} If the change is meant, delete {trained / SUMS}.",
        )
