"""Many kills, full disks and damaged files, each survived or told of. `make chaos` writes what was counted.

PYTHONPATH=tests python -P tests/chaos/suite.py --kills 100 --seed 0 [--write]
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

from chaos.damage import broken_by_damage, draw_damage
from chaos.disk import MOMENTS, CannotMount, SmallDisk, broken_by_a_full_disk
from chaos.kills import Kill, draw_run
from chaos.pushes import PushKills
from chaos.runs import make_recipe
from chaos.survival import Seen, broken_at_the_end, broken_by_a_kill
from chaos.workers import GONE_SECONDS, Hangs, Workers, session_of
from support.counted import write_counts
from support.tiny_runs import create_run

from whet.engine.recipe import Recipe
from whet.engine.runs import supervisor
from whet.engine.runs.store import RunDir

LAUNCHED, IMPORT_SECONDS = 4, 8.0
"""Runs whose first worker is a process of its own, and what that needs to come to its first step."""


class Chaos:
    """Runs that are killed and resumed until they finish, and what was counted meanwhile."""

    def __init__(self, workers: Workers, recipe: Recipe) -> None:
        self.workers, self.recipe = workers, recipe
        self.survived: Counter[str] = Counter()
        self.broken: list[str] = []
        self.finished = self.kills = 0
        whole = create_run(recipe)
        assert workers.attempt(whole) == 0, whole.log_tail()
        self.reference = Seen.of(whole)
        assert self.reference.status == "finished" and self.reference.weights

    def launch_and_kill(self, run: RunDir, after: float) -> None:
        """A worker as a user starts it, killed while it imports its libraries or a little later."""
        pid = supervisor.launch(run)
        time.sleep(after)  # the moment itself, not a wait for something
        os.kill(pid, signal.SIGKILL)
        left = session_of(pid, GONE_SECONDS)
        what = f"{run.id}, launched and killed after {after:.3f} s"
        broken = [f"left: {left}"] if left or run.alive() else []
        nothing = replace(self.reference, checkpoints=[], weights={})
        self._count(what, "a launch", broken + broken_by_a_kill(run, nothing, self.reference))

    def suffer(self, run: RunDir, kills: list[Kill], push: PushKills | None = None) -> None:
        """One run through these deaths and to its end, and then its upload through some more."""
        for kill in kills:
            before = Seen.of(run)
            try:
                status = self.workers.attempt(run, kill)
            except Hangs as hang:
                self.kills += 1
                self.broken.append(f"{run.id}, {kill}: {hang}")
                continue
            if os.WIFEXITED(status):
                self._ended(f"{run.id}, {kill}", status)
                break
            self._count(f"{run.id}, {kill}", kill.place, broken_by_a_kill(run, before, self.reference))
        if run.status() != "finished":
            self._ended(f"{run.id}, the last resume", self.workers.attempt(run))
        self._tell(f"{run.id}, at its end", broken_at_the_end(run, self.reference))
        self.finished += run.status() == "finished"
        if push is not None:
            for place, broken in push.suffer(self.workers, run):
                self._count(f"{run.id}, {place}", place, broken)

    def _ended(self, what: str, status: int) -> None:
        if status != 0:
            self.broken.append(f"{what}: the worker ended with {status}")

    def _count(self, what: str, place: str, broken: list[str]) -> None:
        self.kills += 1
        if broken:
            self._tell(what, broken)
        else:
            self.survived[place] += 1

    def _tell(self, what: str, broken: list[str]) -> None:
        self.broken += [f"{what}: {one}" for one in broken]


def fill_disks(folder: Path, random: Random, fills: int) -> tuple[Counter[str], list[str]]:
    """Runs on a small disk that fills up: how many went through that by place, and what was broken."""
    survived, broken = Counter[str](), list[str]()
    home = folder / "small"
    os.environ["WHET_HOME"] = str(home)
    with SmallDisk(home) as disk, Workers(home) as workers:
        chaos = Chaos(workers, make_recipe(folder))
        for number in range(fills):
            run = create_run(chaos.recipe)
            place = [*MOMENTS][number % len(MOMENTS)]
            moment = Kill(place, said=MOMENTS[place], count=random.randint(1, 3 if "step" in place else 1))
            leave = random.choice((0, 4 << 10, 64 << 10, 300 << 10, 2 << 20))
            found = broken_by_a_full_disk(workers, disk, run, moment, leave, chaos.reference)
            broken += [f"{run.id}, {moment}, {leave} bytes left: {one}" for one in found]
            survived[place] += not found
            shutil.rmtree(run.path)
    return survived, broken


def damage_files(folder: Path, random: Random, damages: int) -> tuple[Counter[str], list[str]]:
    """Runs of which a file changes between two attempts: how many came through, and what was broken."""
    survived, broken = Counter[str](), list[str]()
    os.environ["WHET_HOME"] = str(folder / "damaged")
    with Workers(folder / "damaged") as workers:
        chaos = Chaos(workers, make_recipe(folder, export={"gguf": ["q8_0"], "merged": False}))
        for number in range(damages):
            damage, run = draw_damage(random, number), create_run(chaos.recipe)
            found = broken_by_damage(workers, run, damage, folder / "llama", chaos.reference)
            broken += [f"{run.id}, {damage}: {one}" for one in found]
            survived[damage.what] += not found
            print(f"{number + 1} damages, broken: {broken or 'nothing'}", file=sys.stderr, flush=True)
    return survived, broken


def kill_workers(folder: Path, random: Random, kills: int) -> Chaos:
    """So many kills and a few more: each run is brought to its end."""
    os.environ["WHET_HOME"] = str(folder / "home")
    with Workers(folder / "home") as workers, PushKills.serving(random) as push:
        chaos = Chaos(workers, make_recipe(folder))
        while chaos.kills < kills:
            run = create_run(chaos.recipe)
            if chaos.finished < LAUNCHED:
                chaos.launch_and_kill(run, random.uniform(0.0, IMPORT_SECONDS))
            chaos.suffer(run, draw_run(random), push)
            print(f"{chaos.kills} kills, broken: {chaos.broken or 'nothing'}", file=sys.stderr, flush=True)
    return chaos


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument(
        "--fills", type=int, default=12, help="times a small disk fills, where root may mount"
    )
    parser.add_argument("--damages", type=int, default=24, help="files that change between two attempts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="keep what was counted for docs/reliability.md")
    options = parser.parse_args()
    began, random = time.monotonic(), Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="whet-chaos-") as folder:
        killed = kill_workers(Path(folder), random, options.kills)
        try:
            filled, broken = fill_disks(Path(folder), random, options.fills)
        except CannotMount as problem:
            print(f"No disk was filled: {problem}.", file=sys.stderr)
            filled, broken = Counter[str](), list[str]()
        damaged, unnoticed = damage_files(Path(folder), random, options.damages)
    counts = {
        "kills": killed.kills,
        "kills survived": killed.survived.total(),
        **{f"of them in {place}": count for place, count in sorted(killed.survived.items())},
        "runs finished, bit for bit as the one never killed": killed.finished,
        "full disks": filled.total() + len(broken),
        "full disks survived": filled.total(),
        **{f"full in {place}": count for place, count in sorted(filled.items())},
        "damaged files": options.damages,
        "damaged files mended, gone without, or named": damaged.total(),
        **{f"damaged in {what}": count for what, count in sorted(damaged.items())},
    }
    for what, count in counts.items():
        print(f"{count:4} {what}")
    for line in [*killed.broken, *broken, *unnoticed]:
        print(line)
    if options.write:
        write_counts("chaos", "make chaos", counts, time.monotonic() - began)
    return bool(killed.broken or broken or unnoticed)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
