"""The event file: whole lines or nothing, whatever happens to the writer."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.fake_runs import SOURCE

from whet.engine.errors import WhetError
from whet.engine.runs.events import (
    EvalEvent,
    Event,
    EventLog,
    ExportEvent,
    PhaseEvent,
    SampleEvent,
    StepEvent,
    last_attempt,
    read_events,
)


def step(number: int, loss: float = 1.0, attempt: int = 1) -> StepEvent:
    return StepEvent(
        step=number,
        total_steps=10,
        epoch=0.5,
        loss=loss,
        learning_rate=1e-3,
        grad_norm=1.0,
        tokens=8,
        supervised_tokens=4,
        seconds=0.1,
        memory_bytes=1,
        attempt=attempt,
    )


def steps_of(events: list[Event]) -> list[int]:
    return [event.step for event in events if isinstance(event, StepEvent)]


def test_events_come_back_with_number_attempt_and_time(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", attempt=3)
    log.append(PhaseEvent(phase="load", detail="weights"))
    log.append(step(1, 0.25))
    log.close()
    events, end = read_events(tmp_path / "events.jsonl")
    assert [(event.type, event.seq, event.attempt) for event in events] == [("phase", 1, 3), ("step", 2, 3)]
    assert isinstance(events[1], StepEvent) and events[1].loss == 0.25
    assert events[0].time > 1.7e9
    assert end == (tmp_path / "events.jsonl").stat().st_size
    assert (tmp_path / "events.jsonl").stat().st_mode & 0o777 == 0o600


def test_reading_goes_on_from_the_offset(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, 1)
    log.append(step(1))
    first, offset = read_events(path)
    assert read_events(path, offset) == ([], offset)
    log.append(step(2))
    second, offset = read_events(path, offset)
    assert (steps_of(first), steps_of(second)) == ([1], [2])
    assert offset == path.stat().st_size


def test_no_file_yet_is_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "events.jsonl", 0) == ([], 0)


def test_torn_last_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path, 1).append(step(1))
    line = path.read_bytes()
    with open(path, "ab") as file:
        file.write(line[:40])
        file.flush()
        events, offset = read_events(path)
        assert steps_of(events) == [1] and offset == len(line)
        file.write(line[40:])
    events, offset = read_events(path, offset)
    assert steps_of(events) == [1] and offset == 2 * len(line)


@pytest.mark.parametrize("torn", [b'{"v":1,"seq":3,"ty', b"\0" * 300, b"\0" * 40 + b"\n", b'{"cut\n'])
def test_next_attempt_cuts_off_what_a_death_left(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "events.jsonl"
    first = EventLog(path, 1)
    first.append(step(1))
    first.append(step(2))
    with open(path, "ab") as file:
        file.write(torn)
    before, offset = read_events(path)
    assert steps_of(before) == [1, 2]
    second = EventLog(path, 2)
    assert second.append(step(2)).seq == 3
    after, _ = read_events(path, offset)  # a reader that had read up to the torn line misses nothing
    assert [(event.seq, event.attempt) for event in after] == [(3, 2)]
    assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_sequence_goes_on_behind_an_event_longer_than_the_window(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, 1)
    log.append(step(1))
    log.append(SampleEvent(step=1, prompt="?", answer="long " * 60_000, stopped=False))
    assert EventLog(path, 2).append(step(2)).seq == 3
    assert len(read_events(path)[0]) == 3


def test_not_finite_numbers_are_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, 1)
    log.append(step(1, loss=math.nan).model_copy(update={"grad_norm": math.inf}))
    log.append(ExportEvent(kind="smoke", path="x", detail={"gap": -math.inf, "list": [math.nan]}))

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    (event, export), _ = read_events(path)
    assert isinstance(event, StepEvent) and isinstance(export, ExportEvent)
    assert math.isnan(event.loss) and event.grad_norm == math.inf
    assert export.detail == {"gap": "-Infinity", "list": ["NaN"]}


def test_event_of_a_newer_whet_is_named_not_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path, 1).append(step(1))
    with open(path, "ab") as file:
        file.write(b'{"v":2,"type":"hologram"}\n')
    with pytest.raises(WhetError, match="hologram") as caught:
        read_events(path)
    assert caught.value.code == "run.event_unknown"


def test_reader_beside_writer_sees_each_event_once_in_order(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, 1)
    count = 400

    def write() -> None:
        for number in range(1, count + 1):
            log.append(SampleEvent(step=number, prompt="?", answer="x" * (number * 37 % 9000), stopped=True))

    writers = threading.Thread(target=write)
    writers.start()
    seen: list[int] = []
    offset = 0
    alive = True
    while alive:
        alive = writers.is_alive()  # asked before reading, so that the last round reads all
        events, offset = read_events(path, offset)
        seen += [event.seq for event in events]
    assert seen == list(range(1, count + 1))


def test_refused_write_leaves_the_file_whole(tmp_path: Path) -> None:
    """A file size limit takes the first part of a line and refuses the rest, as a full disk does."""
    path = tmp_path / "events.jsonl"
    code = f"""
import resource
from pathlib import Path
from whet.engine.runs.events import EventLog, PhaseEvent
log = EventLog(Path({str(path)!r}), 1)
log.append(PhaseEvent(phase="load"))
size = Path({str(path)!r}).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, size + 4096))
try:
    log.append(PhaseEvent(phase="train", detail="x" * 500))
except OSError:
    print("refused")
assert Path({str(path)!r}).stat().st_size == size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4096, size + 4096))
log.append(PhaseEvent(phase="eval"))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True
    )
    assert done.stdout == "refused\n", done.stderr
    events, _ = read_events(path)
    assert [(e.seq, e.phase) for e in events if isinstance(e, PhaseEvent)] == [(1, "load"), (2, "eval")]


def test_last_attempt_has_one_value_a_step() -> None:
    def evaluated(at: int, attempt: int) -> EvalEvent:
        return EvalEvent(step=at, loss=1.0, supervised_tokens=1, seconds=0.1, best=True, attempt=attempt)

    killed_at_4: list[Event] = [step(n) for n in (1, 2, 3, 4)]
    killed_at_4 += [evaluated(2, 1), evaluated(4, 1)]
    resumed_from_2: list[Event] = [evaluated(2, 2), step(3, attempt=2)]
    events = list(last_attempt([*killed_at_4, *resumed_from_2]))
    assert [(e.step, e.attempt) for e in events if isinstance(e, StepEvent)] == [(1, 1), (2, 1), (3, 2)]
    assert [(e.step, e.attempt) for e in events if isinstance(e, EvalEvent)] == [(2, 2)]


@pytest.mark.parametrize("most", [1, 300, 1 << 20])
def test_events_read_in_pages_are_the_same_events(tmp_path: Path, most: int) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, attempt=1)
    for number in range(7):
        log.append(PhaseEvent(phase="load", detail="x" * 50 * number))
    with open(path, "ab") as file:
        file.write(b'{"type": "ph')  # torn
    whole, end = read_events(path)
    pages, offset = read_events(path, 0, most)
    assert pages and (most > 300 or len(pages) < len(whole))
    while more := read_events(path, offset, most)[0]:
        pages += more
        offset = read_events(path, offset, most)[1]
    assert (pages, offset) == (whole, end)
