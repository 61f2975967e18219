"""A recorded run in a home of its own; who works on it, or holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fake_runs import SOURCE, write_job
from support.recorded_runs import BEGAN, recorded_run
from support.run_screens import LOOP

from whet.engine.runs import locks, supervisor
from whet.engine.runs.store import RunDir
from whet.tui.screens.run import screen
from whet.tui.screens.run.look import Look


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own; facts that vary by machine and moment are fixed."""
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    monkeypatch.setattr(screen, "_plan", lambda run_id: None)


@pytest.fixture
def run() -> RunDir:
    return recorded_run()


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at a minute after the start, at a path that does not vary."""

    def look(run_id: str, offset: int) -> Look:
        seen = real(run_id, offset)
        path = f"~/.whet/runs/{seen.summary.id}"
        return replace(seen, now=BEGAN + 60, summary=seen.summary.model_copy(update={"path": path}))

    real = screen.look
    monkeypatch.setattr(screen, "look", look)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[..., RunDir]]:
    """Launch a stand-in worker on a run; who still lives at the end is told to stop."""
    started: list[RunDir] = []

    def launch(run: RunDir, body: str = LOOP) -> RunDir:
        supervisor.resume(run, worker=write_job(tmp_path, body))
        started.append(run)
        return run

    yield launch
    for run in started:
        if run.alive():
            run.control.request_stop(now=True)
            supervisor.wait(run, 20)


@pytest.fixture
def held() -> Iterator[Callable[..., RunDir]]:
    """Hold a run's lock, as its worker would, and put it into a state."""
    kept = []

    def hold(run: RunDir, status: str = "running", **state: Any) -> RunDir:
        kept.append(locks.hold(run.lock))
        run.write_state(status=status, launched=BEGAN, attempt=1, **state)
        return run

    yield hold
    for lock in kept:
        lock.release()
