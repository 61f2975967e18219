"""Files of a run that change on the disk between two attempts, and what may come of that."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

from chaos.kills import Kill
from chaos.survival import Seen, broken_at_the_end, shown
from chaos.workers import Workers

from whet.engine.errors import WhetError
from whet.engine.runs.store import RunDir

HOWS = ("a flipped bit", "cut", "zeros", "gone")
UNSUMMED = ("the plan", "the base model")
"""Of these whet keeps no sums: other digits, or other weights of somebody's model, are not noticed."""
WHATS = ("a checkpoint", "prepared rows", "the events", "the plan", "the trained weights", "the base model")


@dataclass(frozen=True)
class Damage:
    """One file, by what it belongs to, and what happens to it.

    Args:
        at: where, as a share of the file.
    """

    what: str
    how: str
    at: float
    pick: float

    def do(self, run: RunDir, base: Path) -> Path:
        """The file that was damaged."""
        files = _files(self.what, run, base)
        path = files[int(self.pick * len(files))]
        data = bytearray(path.read_bytes())
        place = int(self.at * len(data))
        if self.how == "a flipped bit":
            data[place] ^= 1 << (place % 8)
        elif self.how == "cut":
            del data[place:]
        elif self.how == "zeros":
            data[place : place + 4096] = bytes(len(data[place : place + 4096]))
        if self.how == "gone":
            path.unlink()
        else:
            path.write_bytes(data)
        return path


def draw_damage(random: Random, number: int) -> Damage:
    """Every kind of file and of damage in turn, the place by chance."""
    what, how = WHATS[number % len(WHATS)], HOWS[number // len(WHATS) % len(HOWS)]
    if what in UNSUMMED and how in ("a flipped bit", "zeros"):
        how = "cut"
    return Damage(what, how, random.random(), random.random())


def broken_by_damage(workers: Workers, run: RunDir, damage: Damage, base: Path, reference: Seen) -> list[str]:
    """Kill a run, damage a file and go on: the run is then as if nothing had been, or says what is wrong.

    ``base`` is put back at the end.
    """
    late = damage.what == "the trained weights"
    workers.attempt(
        run, Kill("", said='"phase":"merge"' if late else '"type":"step"', count=1 if late else 7)
    )
    kept = shutil.copytree(base, base.with_name("base-kept"))
    path = damage.do(run, base)
    try:
        status = workers.attempt(run)
        return _verdict(run, status, damage, path, reference)
    finally:
        shutil.rmtree(base)
        kept.rename(base)
        shutil.rmtree(run.load_plan().data.dir if damage.what == "prepared rows" else run.path)


def _verdict(run: RunDir, status: int, damage: Damage, path: Path, reference: Seen) -> list[str]:
    name = f"{path.name}, {damage.how}"
    try:
        state, page = run.read_state(), shown(run)
    except WhetError as refused:
        return [] if refused.hint else [f"{name}: refused without a way out: {refused}"]
    if state.status == "finished":
        wrong = broken_at_the_end(run, reference)
        if damage.what == "the events":  # lines that are gone are gone; the others are what they were
            wrong = [one for one in wrong if not one.startswith(("curve", "evals"))]
        return [f"{name}: {one}" for one in wrong]
    error = state.error
    if error is None or error.code == "run.crashed" or not error.hint or "Traceback" in error.message:
        return [f"{name}: ended with {status}, {error}"]
    return [] if f"whet resume {run.id}" in page else [f"{name}: no next step is offered"]


def _files(what: str, run: RunDir, base: Path) -> list[Path]:
    data = run.load_plan().data
    if what == "a checkpoint":
        newest = max(run.checkpoints.glob("step-*"))
        return sorted(path for path in newest.rglob("*") if path.is_file())
    if what == "prepared rows":
        return sorted(path for path in data.dir.iterdir() if path.suffix == ".arrow")
    if what == "the events":
        return [run.events]
    if what == "the plan":
        return [run.plan]
    if what == "the trained weights":
        return sorted((run.export / "adapter").glob("*.safetensors"))
    return sorted(path for path in base.iterdir() if path.is_file())
