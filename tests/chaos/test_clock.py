"""A clock that is set back or forward between two attempts, or within one, confuses nobody."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos.survival import shown
from support.command_line import whet
from support.fake_runs import FakePlan, make_recipe
from support.tiny_runs import create_run, events_of, tiny_recipe, write_chat_rows

from whet.engine.demo import MODEL_DIR
from whet.engine.run_view import view_run
from whet.engine.runs.clock import RunClock
from whet.engine.runs.context import RunContext
from whet.engine.runs.events import EventLog, ExportEvent, PhaseEvent
from whet.engine.runs.gpu_queue import _ahead_of
from whet.engine.runs.store import RunDir, RunStore

HOUR = 3600.0
SetClock = Callable[[float], None]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """Moves the time of day by so many seconds from the true one."""
    true = time.time

    def move(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: true() + seconds)

    return move


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    return create_run(tiny_recipe(MODEL_DIR, write_chat_rows(tmp_path / "rows.jsonl")))


def attempt(run: RunDir, number: int, *details: str) -> None:
    run.write_state(status="running", attempt=number, launched=time.time())
    context = RunContext(run, number, EventLog(run.events, number))
    for detail in details:
        context.emit(PhaseEvent(phase="load", detail=detail))
    assert context.close("stopped") == []


@pytest.mark.parametrize("moved", [-400 * HOUR, -1.0, 0.0, 400 * HOUR])
def test_events_never_go_back_in_time(run: RunDir, set_clock: SetClock, moved: float) -> None:
    attempt(run, 1, "a", "b")
    set_clock(moved)
    attempt(run, 2, "c", "d")
    times = [event.time for event in events_of(run)]
    assert times == sorted(times) and len(times) == 6
    assert (times[-1] - times[0] < 60) == (moved <= 0), "a clock set forward is believed at the next start"
    assert f"whet resume {run.id}" in shown(run)


@pytest.mark.parametrize("moved", [-HOUR, HOUR])
def test_a_clock_that_is_set_within_an_attempt_changes_no_duration(set_clock: SetClock, moved: float) -> None:
    clock = RunClock()
    before = clock.now()
    set_clock(moved)
    assert 0 <= clock.now() - before < 5


def test_the_newest_word_on_a_file_is_the_last_one(run: RunDir, set_clock: SetClock) -> None:
    """Proven again and failed, by a clock that was set back: that it had passed is the past."""
    gguf = str(run.export / "a.gguf")
    for number, (moved, status) in enumerate([(0.0, "pass"), (-HOUR, "fail")], 1):
        set_clock(moved)
        log = EventLog(run.events, number)
        log.append(ExportEvent(kind="gguf", path=gguf))
        log.append(ExportEvent(kind="smoke", path=gguf, detail={"status": status}))
        log.close()
    assert view_run(run).verdict == "fail"


def test_the_waiting_order_has_one_first_whatever_the_clock_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_clock: SetClock
) -> None:
    """By the times at which they started; each waits for those before it, so nobody waits for ever."""
    monkeypatch.setenv("WHET_HOME", str(tmp_path))
    waiting = []
    for moved in (0.0, -HOUR, HOUR, -HOUR):
        set_clock(moved)
        one = RunStore().create(FakePlan(recipe=make_recipe()), "test")  # type: ignore[arg-type]
        one.write_state(status="waiting", launched=time.time(), waiting_for=["GPU-1"])
        waiting.append(one)
    monkeypatch.setattr(RunDir, "alive", lambda self: True)
    assert sorted(len(_ahead_of(one, ["GPU-1"])) for one in waiting) == [0, 1, 2, 3]


@pytest.mark.parametrize("moved", [-10 * HOUR, 10 * HOUR])
def test_ages_are_told_by_any_clock(run: RunDir, set_clock: SetClock, moved: float) -> None:
    attempt(run, 1, "a")
    set_clock(moved)
    for words in (("runs",), ("show", run.id), ("show", run.id, "--json")):
        said = whet(*words)
        assert said.code == 0 and run.id in said.out and "-" not in said.out.split("ago")[0][-4:]
