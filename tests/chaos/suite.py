"""Many kills, each survived or told of. `make chaos` writes what was counted.

python -P tests/chaos/suite.py --kills 100 --seed 0 [--write]
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from chaos.kills import Kill, draw_run
from chaos.pushes import PushKills
from chaos.runs import make_recipe
from chaos.survival import Seen, broken_at_the_end, broken_by_a_kill
from chaos.workers import Hangs, Workers
from support.counted import write_counts
from support.tiny_runs import create_run

from whet.engine.recipe import Recipe


class Chaos:
    """Runs that are killed and resumed until they finish, and what was counted meanwhile."""

    def __init__(self, workers: Workers, recipe: Recipe) -> None:
        self.workers, self.recipe = workers, recipe
        self.survived: Counter[str] = Counter()
        self.broken: list[str] = []
        self.finished = 0
        whole = create_run(recipe)
        assert workers.attempt(whole) == 0, whole.log_tail()
        self.reference = Seen.of(whole)
        assert self.reference.status == "finished" and self.reference.weights

    @property
    def kills(self) -> int:
        return sum(self.survived.values()) + len(self.broken)

    def suffer(self, kills: list[Kill], push: PushKills | None = None) -> None:
        """One run through these deaths and to its end, and then its upload through some more."""
        run = create_run(self.recipe)
        for kill in kills:
            before = Seen.of(run)
            try:
                status = self.workers.attempt(run, kill)
            except Hangs as hang:
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
        if broken:
            self._tell(what, broken)
        else:
            self.survived[place] += 1

    def _tell(self, what: str, broken: list[str]) -> None:
        self.broken += [f"{what}: {one}" for one in broken]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="keep what was counted for docs/reliability.md")
    options = parser.parse_args()
    began, random = time.monotonic(), Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="whet-chaos-") as folder:
        os.environ["WHET_HOME"] = f"{folder}/home"
        with Workers(Path(folder) / "home") as workers, PushKills.serving(random) as push:
            chaos = Chaos(workers, make_recipe(Path(folder)))
            while chaos.kills < options.kills:
                chaos.suffer(draw_run(random), push)
                print(
                    f"{chaos.kills} kills, broken: {chaos.broken or 'nothing'}", file=sys.stderr, flush=True
                )
    for line in chaos.broken:
        print(line)
    for place, count in sorted(chaos.survived.items()):
        print(f"{count:4} {place}")
    if options.write:
        counts = {
            "kills": chaos.kills,
            "kills survived": sum(chaos.survived.values()),
            **{f"of them in {place}": count for place, count in sorted(chaos.survived.items())},
            "runs finished, bit for bit as the one never killed": chaos.finished,
        }
        write_counts("chaos", "make chaos", counts, time.monotonic() - began)
    return bool(chaos.broken)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
