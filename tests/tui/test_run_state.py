"""What events add up to: resumed runs, losses that are no number, long runs, and the words about them."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
from support.recorded_runs import answers, held_out, record, recorded_run, step, training

from whet.engine import api
from whet.engine.findings import Finding
from whet.engine.runs.events import (
    ErrorEvent,
    EvalEvent,
    Event,
    ExportEvent,
    FindingEvent,
    PhaseEvent,
    SampleEvent,
    StepEvent,
    last_attempt,
)
from whet.engine.runs.store import RunDir
from whet.tui.run_state import Pace, RunProgress


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setenv("WHET_HOME", str(tmp_path))
    return recorded_run()


def taken(run: RunDir) -> RunProgress:
    progress = RunProgress()
    progress.take(api.events(run.id)[0])
    return progress


def attempts(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty steps, then from 40 on again, interrupted at 47, then from 44 on."""
    end = record(run, training(last=60), monkeypatch)
    again: list[Event] = [PhaseEvent(phase="load"), *(step(n, loss=5.0 + n / 100) for n in range(41, 48))]
    end = record(run, again, monkeypatch, attempt=2, began=end + 100)
    third: list[Event] = [held_out(43, 0.5), *answers(43), *(step(n, loss=7.0) for n in range(45, 51))]
    record(run, third, monkeypatch, attempt=3, began=end + 100)


def test_resumed_runs_have_the_curve_that_the_engine_tells(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts(run, monkeypatch)
    progress = taken(run)
    told = list(last_attempt(api.events(run.id)[0]))
    steps = [event for event in told if isinstance(event, StepEvent)]
    assert list(progress.curves.step) == [event.step for event in steps] == list(range(1, 51))
    assert list(progress.curves.loss) == [event.loss for event in steps]
    assert list(progress.evals.values()) == [event for event in told if isinstance(event, EvalEvent)]
    assert sorted(progress.samples) == sorted(
        (event.step, event.prompt) for event in told if isinstance(event, SampleEvent)
    )
    assert progress.resumed_at == [41, 45] and progress.attempt == 3


def test_events_taken_in_pieces_add_up_to_the_same(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts(run, monkeypatch)
    whole, pieces = taken(run), RunProgress()
    for event in api.events(run.id)[0]:
        assert pieces.take([event])
    assert not pieces.take([])
    for name in whole.curves.COLUMNS:
        assert whole.curves.values(name) == pieces.curves.values(name)
    assert whole.phases == pieces.phases and whole.evals == pieces.evals


def test_tokens_and_seconds_add_up_over_what_counts(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts(run, monkeypatch)
    curves = taken(run).curves
    assert curves.tokens[-1] == 50 * 4096
    assert curves.seconds[-1] == pytest.approx(50 * 0.5)


def test_losses_that_are_no_number_are_told_and_taken_back(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {5: math.nan, 7: math.inf}
    record(run, [step(n, loss=losses.get(n, 1.0)) for n in range(1, 9)], monkeypatch)
    progress = taken(run)
    assert progress.curves.not_finite == [5, 7]
    assert math.isnan(progress.curves.loss[4]) and not math.isfinite(progress.pace.loss)
    record(run, [step(n, loss=1.0) for n in range(6, 9)], monkeypatch, attempt=2)
    assert taken(run).curves.not_finite == [5]


def test_a_long_run_is_taken_at_once_and_further_steps_cost_nothing() -> None:
    said = [step(n, total=100_001).model_copy(update={"attempt": 1}) for n in range(1, 100_001)]
    progress = RunProgress()
    began = time.process_time()
    progress.take(said)
    first = time.process_time() - began
    began = time.process_time()
    progress.take([step(100_001, total=100_001).model_copy(update={"attempt": 1})])
    assert len(progress.curves) == 100_001
    assert first < 2.0 and time.process_time() - began < 0.01


def test_phases_last_from_their_event_to_the_next(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [PhaseEvent(phase="load"), PhaseEvent(phase="load"), PhaseEvent(phase="eval", done=1, total=4)]
    last = record(run, [*said, step(1), step(2), PhaseEvent(phase="eval", done=2, total=4)], monkeypatch)
    progress = taken(run)
    assert list(progress.phases) == ["load", "eval", "train"] and progress.phase == "eval"
    assert progress.spent("load", last) == 1.0 and progress.spent("train", last) == 1.0
    assert progress.spent("eval", last + 3) == 0.5 + 3 and progress.phases["eval"].share == 0.5


def test_a_new_attempt_forgets_the_error_and_keeps_the_findings(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Finding(id="T02", severity="warning", title="A spike.")
    twice: list[Event] = [FindingEvent(finding=found), step(1), FindingEvent(finding=found)]
    record(run, [*twice, ErrorEvent(code="run.crashed", message="x")], monkeypatch)
    failed = taken(run)
    assert failed.error is not None and failed.findings == [found] and failed.phase is None
    record(run, [PhaseEvent(phase="load")], monkeypatch, attempt=2)
    again = taken(run)
    assert again.error is None and again.findings == [found] and again.pace.seconds_left is None


def test_the_newest_word_on_a_file_counts(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    proven = [
        ExportEvent(kind="smoke", path=path, detail={"status": "fail"}) for path in ("a.gguf", "b.gguf")
    ]
    written = ExportEvent(kind="gguf", path="a.gguf", bytes=1)
    record(run, [written, *proven], monkeypatch)
    assert taken(run).verdict == "fail"
    better = ExportEvent(kind="smoke", path="b.gguf", detail={"status": "pass"})
    record(run, [written, better], monkeypatch, attempt=2)
    assert taken(run).verdict == "pass"
    assert list(taken(run).exports) == [("gguf", "a.gguf"), ("smoke", "b.gguf")]


def test_pace_averages_the_last_steps() -> None:
    pace = Pace()
    assert pace.seconds_left is None and pace.tokens_per_second == 0.0
    for number in range(1, 41):
        pace.add(step(number, total=50, loss=float(number), seconds=1.0 if number <= 20 else 2.0))
    assert pace.loss == sum(range(21, 41)) / 20
    assert pace.seconds_left == 10 * 2.0 and pace.tokens_per_second == 2048
