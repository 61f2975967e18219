"""Real workers with light jobs: each test writes the body of a job and launches it as its own process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, cast

import pytest
from support.fake_runs import SOURCE, FakePlan, make_recipe, write_job

from whet.engine.plan import Plan
from whet.engine.runs import supervisor
from whet.engine.runs.store import RunDir, RunStore


class Launch(Protocol):
    def __call__(self, body: str, run: RunDir | None = None, gpus: tuple[str, ...] = ()) -> RunDir: ...


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    return RunStore()


@pytest.fixture
def create(store: RunStore) -> Callable[..., RunDir]:
    def make(name: str = "fake") -> RunDir:
        return store.create(cast(Plan, FakePlan(recipe=make_recipe(name))), "test")

    return make


@pytest.fixture
def job_script(tmp_path: Path) -> Callable[..., tuple[str]]:
    """Write a worker whose job has the given body; returns what the interpreter is to run."""

    def write(body: str, gpus: tuple[str, ...] = ()) -> tuple[str]:
        return write_job(tmp_path, body, gpus)

    return write


@pytest.fixture
def launch(create: Callable[..., RunDir], job_script: Any) -> Iterator[Launch]:
    """Launch a job on a new run (or ``run``); whatever still lives at the test's end is killed."""
    started: list[int] = []

    def start(body: str, run: RunDir | None = None, gpus: tuple[str, ...] = ()) -> RunDir:
        run = run or create()
        started.append(supervisor.resume(run, worker=job_script(body, gpus)))
        return run

    yield start
    for pid in started:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
