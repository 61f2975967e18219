"""A small disk of its own that fills up at a moment, and what a run on it must then be."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from chaos.kills import Kill
from chaos.survival import Seen, broken_at_the_end, lost, other_than, shown
from chaos.workers import Workers

from whet.engine.runs.store import RunDir

MEGABYTES = 96
MOMENTS = {
    "a training step": '"type":"step"',
    "an evaluation": '"phase":"eval"',
    "merging": '"phase":"merge"',
    "a GGUF's writing": '"detail":"GGUF q8_0"',
}
"""Place -> the words in the events after which there is no more room."""


class CannotMount(Exception):
    """This system does not let us mount a file system."""


class SmallDisk:
    """A tmpfs on ``folder``, while the block runs. Raises CannotMount."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.neighbour = folder / "neighbour"

    def __enter__(self) -> SmallDisk:
        self.folder.mkdir(exist_ok=True)
        if os.geteuid() != 0 or shutil.which("mount") is None:
            raise CannotMount("only root may mount a tmpfs")
        size = f"size={MEGABYTES}m,mode=700"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", size, "whet-chaos", str(self.folder)],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise CannotMount(done.stderr.strip())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)

    def fill(self, leave: int) -> None:
        """Another program takes all but ``leave`` bytes, or all where the worker was faster."""
        free = shutil.disk_usage(self.folder).free
        with suppress(OSError):
            self.neighbour.write_bytes(bytes(max(0, free - leave)))

    def free(self) -> None:
        self.neighbour.unlink()


def broken_by_a_full_disk(
    workers: Workers, disk: SmallDisk, run: RunDir, moment: Kill, leave: int, reference: Seen
) -> list[str]:
    """Train until the moment, fill the disk, and go on with room; what of that was not as it should be."""
    pid = workers.start(run=str(run.path))
    workers.await_words(run, moment)
    disk.fill(leave)
    try:
        workers.end(pid)
        met, error, page = Seen.of(run), run.read_state().error, shown(run)
    finally:
        disk.free()
    broken = other_than(met, reference)
    if met.status == "failed" and (error is None or not error.code.endswith("disk_full")):
        broken.append(f"the state says {error}")
    elif met.status not in ("failed", "interrupted", "finished"):
        broken.append(f"the state says {met.status}")
    if met.status != "finished":
        if f"whet resume {run.id}" not in page:
            broken.append("no next step is offered")
        workers.attempt(run)
    return broken + lost(met, Seen.of(run)) + broken_at_the_end(run, reference)
