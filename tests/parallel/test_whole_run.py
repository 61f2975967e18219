"""A real run in two real processes, from its start to its weights, with a mishap on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fake_runs import SOURCE, until
from support.tiny_models import build_tiny_model
from support.tiny_runs import create_run, events_of, tiny_recipe, write_chat_rows

from whet.engine.runs import supervisor
from whet.engine.runs.events import ErrorEvent, EvalEvent, StepEvent, last_attempt
from whet.engine.runs.store import RunDir

LONG = 180.0
Create = Callable[[str], RunDir]


@pytest.fixture
def create(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Create:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    model = build_tiny_model(tmp_path / "llama")
    rows = write_chat_rows(tmp_path / "rows.jsonl", 24)

    def make(ranks: str) -> RunDir:
        monkeypatch.setenv("WHET_CPU_RANKS", ranks)
        training = {"max_steps": 12, "save_every": 3}
        data, adapter = {"eval": str(rows)}, {"dropout": 0.0}
        return create_run(
            tiny_recipe(model, rows, data=data, adapter=adapter, training=training, eval={"every": 6})
        )

    return make


def rank_1(run: RunDir) -> int:
    """The process of the run's other rank, found by its command line; 0 while there is none."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_text().split("\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if "whet.engine.runs.rank" in command and str(run.path) in command:
                return int(process.name)
    return 0


def numbers(run: RunDir) -> list[tuple[str, int, float]]:
    events = last_attempt(events_of(run))
    return [(e.type, e.step, e.loss) for e in events if isinstance(e, StepEvent | EvalEvent)]


@pytest.mark.slow  # three attempts in real workers: `make slow`
def test_killed_rank_costs_the_run_nothing_but_steps(create: Create) -> None:
    """Its losses, after the resume, are those of one process that nothing happened to."""
    run = create("2")
    assert run.load_plan().resolved.ranks == 2
    pid = supervisor.launch(run)
    try:
        until(lambda: any(isinstance(e, StepEvent) and e.step == 4 for e in events_of(run)), "step 4", LONG)
        os.kill(until(lambda: rank_1(run), "the other rank", 5), signal.SIGKILL)
        assert supervisor.wait(run, LONG) == "failed"
        error = events_of(run)[-1]
        assert isinstance(error, ErrorEvent) and error.code == "run.rank_died", run.log_tail()
        pid = supervisor.resume(run)
        assert supervisor.wait(run, LONG) == "finished", run.log_tail()
        assert rank_1(run) == 0

        alone = create("1")
        pid = supervisor.launch(alone)
        assert supervisor.wait(alone, LONG) == "finished", alone.log_tail()
    finally:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            pid = 0
    assert [one[:2] for one in numbers(run)] == [one[:2] for one in numbers(alone)]
    assert [one[2] for one in numbers(run)] == pytest.approx([one[2] for one in numbers(alone)], rel=1e-5)
