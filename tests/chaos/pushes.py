"""Uploads whose process is killed while the hub holds one of its requests."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from chaos.workers import LIMIT_SECONDS, Hangs, Workers
from support.hub_standin import Fault, StandIn, serve

from whet.engine.runs.store import RunDir

PLACE = "an upload"
LAST_REQUEST = 12
"""Of an upload of two GGUF files, their verdicts, the Modelfile and the card."""


class PushKills:
    """A hub, and how often uploads to it are killed."""

    def __init__(self, hub: StandIn, random: Random, kills: int = 2) -> None:
        self.hub, self.random, self.kills = hub, random, kills

    @classmethod
    @contextmanager
    def serving(cls, random: Random, kills: int = 2) -> Iterator[PushKills]:
        with serve(StandIn(part_bytes=1 << 16)) as hub:
            yield cls(hub, random, kills)

    def suffer(self, workers: Workers, run: RunDir) -> Iterator[tuple[str, list[str]]]:
        """For each kill what it broke, the finished upload included in the last."""
        repo = f"me/{run.id}"
        told = []
        for _ in range(self.kills):
            arrived = dict(self.hub.storage)
            if self._killed(workers, run, repo):
                told.append(self._broken(run, repo, arrived))
        status = workers.end(workers.start(push=str(run.path), part="gguf", repo=repo, hub=self.hub.url))
        end = [] if status == 0 else [f"the upload ended with {status}"]
        here = {path.name for path in run.export.iterdir() if path.is_file() and path.name[0] != "."}
        if not end and set(self.hub.names(repo)) != here:
            end.append(f"the repository holds {self.hub.names(repo)}, not {sorted(here)}")
        if told:
            told[-1] += end + self._broken(run, repo, {})
        yield from ((PLACE, broken) for broken in told)

    def _killed(self, workers: Workers, run: RunDir, repo: str) -> bool:
        """Whether the upload met the request at which it dies."""
        held = Fault(".", None, skip=self.random.randint(0, LAST_REQUEST), stalls=True)
        self.hub.faults = [held]
        pid = workers.start(push=str(run.path), part="gguf", repo=repo, hub=self.hub.url)
        deadline = time.monotonic() + LIMIT_SECONDS
        while held.times and workers.answers.empty():
            if time.monotonic() > deadline:
                raise Hangs(f"the upload of {run.id} asked nothing")
            time.sleep(0.001)
        self.hub.faults = []
        if workers.answers.empty():
            os.kill(pid, signal.SIGKILL)
        return os.WIFSIGNALED(workers.end(pid))

    def _broken(self, run: RunDir, repo: str, arrived: dict[str, bytes]) -> list[str]:
        """A commit that names other bytes than the run's, or bytes that went away."""
        broken = []
        found = self.hub.repositories.get(repo)
        for name, digest in found.lfs.items() if found is not None else ():
            if digest != _hash(run.export / name):
                broken.append(f"{name} in the repository is another file")
        lost = [digest for digest in arrived if digest not in self.hub.storage]
        return broken + ([f"the hub lost {lost}"] if lost else [])


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
