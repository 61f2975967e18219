"""Every way a worker can end leaves a state and an event that say so. Workers here are real processes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_runs import SOURCE, make_recipe, until

from whet.engine.findings import Finding
from whet.engine.plan import make_plan
from whet.engine.runs import supervisor, worker
from whet.engine.runs.context import RunContext
from whet.engine.runs.events import (
    DoneEvent,
    ErrorEvent,
    Event,
    EventLog,
    FindingEvent,
    PhaseEvent,
    StepEvent,
    read_events,
)
from whet.engine.runs.failures import describe_failure
from whet.engine.runs.jobs import ExportJob
from whet.engine.runs.rank_report import RankError
from whet.engine.runs.state import Status
from whet.engine.runs.store import RunDir, RunStore

Launch = Callable[..., RunDir]


def ended(run: RunDir) -> Status:
    """The status once the worker is gone; fails rather than hang."""
    status = supervisor.wait(run, timeout=30)
    assert not run.alive(), f"still {status}: {run.log_tail()}"
    return status


def error_of(run: RunDir) -> ErrorEvent:
    """The one error event, which is the last, and the same as in the state."""
    events, _ = read_events(run.events)
    errors = [event for event in events if isinstance(event, ErrorEvent)]
    assert len(errors) == 1 and events[-1] is errors[0], events
    state = run.read_state()
    assert state.error is not None
    assert (state.error.code, state.error.message) == (errors[0].code, errors[0].message)
    return errors[0]


def steps(run: RunDir) -> list[tuple[int, int]]:
    return [(e.attempt, e.step) for e in read_events(run.events)[0] if isinstance(e, StepEvent)]


def test_finished_run_says_so_everywhere(launch: Launch) -> None:
    run = launch("""
        context.emit(PhaseEvent(phase="train"))
        step(context, 1, loss=float("nan"))
        step(context, 2, loss=0.5)
        context.emit(CheckpointEvent(step=2, path="checkpoints/step-000002", bytes=10, seconds=0.1))
        context.update(best_checkpoint="checkpoints/step-000002")
        context.emit(EvalEvent(step=2, loss=0.75, supervised_tokens=4, seconds=0.1, best=True))
        (context.dir.checkpoints / "made-by-the-job").write_text("x")
        context.summary["loss"] = 0.5
    """)
    assert ended(run) == "finished", run.log_tail()
    state = run.read_state()
    assert (state.step, state.total_steps, state.loss, state.eval_loss, state.attempt) == (2, 9, 0.5, 0.75, 1)
    assert state.phase == "train" and state.pid is None and state.error is None
    assert state.last_checkpoint == state.best_checkpoint == "checkpoints/step-000002"
    assert state.summary == {"loss": 0.5}
    last = read_events(run.events)[0][-1]
    assert isinstance(last, DoneEvent) and (last.status, last.summary) == ("finished", {"loss": 0.5})
    assert not run.reserve.exists()
    private = [run.events, run.log, run.lock, run.state, run.checkpoints / "made-by-the-job"]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in private} == {
        path.name: "0o600" for path in private
    }


def test_exception_ends_in_a_clean_error_and_a_traceback_in_the_log_only(launch: Launch) -> None:
    run = launch("""
        step(context, 1)
        raise ValueError("shapes (3,) and (4,)\\nsecond line")
    """)
    assert ended(run) == "failed"
    error = error_of(run)
    assert error.code == "run.crashed" and error.message == "ValueError: shapes (3,) and (4,)"
    assert str(run.log) in error.hint
    log = run.log.read_text()
    assert "Traceback" in log and "second line" in log
    assert "Traceback" not in run.events.read_text() + run.state.read_text()


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        ("WhetError('train.not_finite', 'The loss is nan at step 3.', 'Lower it.')", "train.not_finite"),
        ("OSError(errno.ENOSPC, 'No space left on device', 'model.safetensors')", "run.disk_full"),
        ("RuntimeError('I/O error: No space left on device (os error 28)')", "run.disk_full"),
        ("FileNotFoundError(errno.ENOENT, 'No such file', '/data/caf\\udce9.jsonl')", "run.file_missing"),
        ("MemoryError()", "run.out_of_memory"),
        ("RuntimeError('unable to mmap 5 bytes: Cannot allocate memory (12)')", "run.out_of_memory"),
        ("json.JSONDecodeError('Invalid control character', 'x', 0)", "run.crashed"),
        ("OSError(errno.EFBIG, 'File too large')", "run.file_too_large"),
        ("RuntimeError('I/O error: Input/output error (os error 5)')", "run.disk_error"),
        ("OSError(errno.EROFS, 'Read-only file system')", "run.disk_error"),
        ("SystemExit(0)", "run.crashed"),
    ],
)
def test_known_failures_have_codes(launch: Launch, raised: str, code: str) -> None:
    run = launch(f"raise {raised}")
    assert ended(run) == "failed", run.log_tail()
    error = error_of(run)
    assert error.code == code and error.message
    assert error.hint or code == "train.not_finite"


def test_cause_behind_a_library_s_own_error_is_found(tmp_path: Path) -> None:
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError as full:
            raise RuntimeError("writer failed") from full
    except RuntimeError as error:
        assert describe_failure(error, tmp_path).code == "run.disk_full"
    assert describe_failure(RuntimeError("writer failed"), tmp_path).code == "run.crashed"


@pytest.mark.parametrize("text", ["", '{"step": 1', "\x00\x00"])
def test_json_that_a_file_of_the_run_no_longer_holds_names_the_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "checkpoints" / "step-000002" / "cursor.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(file.read_text())
    error = describe_failure(caught.value, tmp_path)
    assert error.code == "run.file_damaged" and str(file) in error.message
    file.unlink()
    assert describe_failure(caught.value, tmp_path).code == "run.crashed"


def test_json_of_the_planned_model_and_of_a_job_s_parent_is_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    run = RunStore().create(make_plan(make_recipe()), "test")
    config = run.load_plan().model.path / "config.json"
    error = json.JSONDecodeError("Expecting value", config.read_text(), 0)
    assert str(config) in describe_failure(error, run.path).message
    adapter = run.path / "final" / "adapter_config.json"
    adapter.parent.mkdir()
    adapter.write_text("{")
    (run.path / "away.json").symlink_to(run.path / "gone")
    job = RunStore().create_job(ExportJob(parent=run.id, section=None), "test")
    failure = describe_failure(json.JSONDecodeError("Expecting value", "{", 1), job.path)
    assert failure.code == "run.file_damaged" and str(adapter) in failure.message


def test_sigkill_is_interrupted_and_frees_the_lock(launch: Launch) -> None:
    run = launch("train_until_stopped(context)")
    until(lambda: steps(run), "a step")
    assert run.status() == "running"
    pid = run.read_state().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert ended(run) == "interrupted"
    assert run.read_state().status == "running"  # nobody was left to write anything else


def test_segfault_is_interrupted_with_its_stack_in_the_log(launch: Launch) -> None:
    run = launch("import ctypes; ctypes.string_at(0)")
    assert ended(run) == "interrupted"
    assert "Segmentation fault" in run.log.read_text()


def test_worker_that_cannot_even_be_read_is_interrupted(create: Any, job_script: Any) -> None:
    run, script = create(), job_script("pass")
    Path(*script).write_text("this is no python")
    supervisor.launch(run, worker=script)
    assert ended(run) == "interrupted"
    assert "SyntaxError" in "\n".join(run.log_tail())


@pytest.mark.parametrize("how", ["file", "SIGTERM", "SIGINT"])
def test_stop_finishes_the_step_and_ends_stopped(launch: Launch, how: str) -> None:
    run = launch("""
        train_until_stopped(context)
        (context.dir.checkpoints / "saved").write_text(context.stop_requested())
        raise Stopped
    """)
    until(lambda: steps(run), "a step")
    if how == "file":
        assert supervisor.stop(run) == "checkpoint"
    else:
        os.kill(run.read_state().pid or 0, getattr(signal, how))
    assert ended(run) == "stopped"
    assert (run.checkpoints / "saved").read_text() == "checkpoint"
    last = read_events(run.events)[0][-1]
    assert isinstance(last, DoneEvent) and last.status == "stopped"


def test_sigterms_of_one_preemption_are_one_request(create: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create()
    context = RunContext(run, 1, EventLog(run.events, 1))
    signals = worker.Signals(context)
    for _ in range(3):
        signals.count(signal.SIGTERM)
    assert context.stop_requested() == "checkpoint"
    monkeypatch.setattr(worker, "SAME_REQUEST_SECONDS", 0.0)
    signals.count(signal.SIGTERM)
    assert context.stop_requested() == "now"


class NoRoom(EventLog):
    """Of a disk that is full but for the run's reserve."""

    def append(self, event: Event) -> Event:
        if isinstance(event, FindingEvent):
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().append(event)


def test_a_finding_that_has_no_room_keeps_no_failure_from_its_end(create: Any) -> None:
    run = create()
    context = RunContext(run, 1, NoRoom(run.events, 1))
    finding = Finding(id="L11", severity="error", title="Rank 1: Memory ran out.")
    worker._fail(context, RankError("run.out_of_memory", "Rank 1: L11: Memory ran out.", finding=finding))
    assert run.read_state().status == "failed"
    assert error_of(run).code == "run.out_of_memory"


def test_each_ctrl_c_is_a_request(create: Any) -> None:
    run = create()
    context = RunContext(run, 1, EventLog(run.events, 1))
    signals = worker.Signals(context)
    signals.count(signal.SIGINT)
    assert context.stop_requested() == "checkpoint"
    signals.count(signal.SIGINT)
    assert context.stop_requested() == "now"


@pytest.mark.parametrize("second", ["file", "SIGTERM"])
def test_second_stop_is_at_once_for_a_job_that_polls(launch: Launch, second: str) -> None:
    run = launch("""
        step(context, 1)
        while context.stop_requested() != "now":
            time.sleep(0.01)
        raise Stopped
    """)
    until(lambda: steps(run), "a step")
    assert supervisor.stop(run) == "checkpoint"
    assert run.status() == "running"
    if second == "file":
        assert supervisor.stop(run) == "now"
    else:
        os.kill(run.read_state().pid or 0, signal.SIGTERM)
    assert ended(run) == "stopped"


def test_stop_at_once_ends_a_job_that_does_not_listen_and_what_it_started(launch: Launch) -> None:
    run = launch("""
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (context.dir.path / "child").write_text(str(child.pid))
        step(context, 1)
        child.wait()
    """)
    until(lambda: steps(run), "a step")
    child = int((run.path / "child").read_text())
    assert supervisor.stop(run, now=True) == "now"
    assert ended(run) == "stopped"
    assert isinstance(read_events(run.events)[0][-1], DoneEvent)
    until(lambda: _is_gone(child), "the end of the child", 5)


def _is_gone(pid: int) -> bool:
    """No such process, or one that only waits to be collected by init."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_checkpoint_request_is_taken_once(launch: Launch) -> None:
    run = launch("""
        step(context, 1)
        while not context.take_checkpoint_request():
            time.sleep(0.01)
        context.summary["again"] = context.take_checkpoint_request()
    """)
    until(lambda: steps(run), "a step")
    run.control.request_checkpoint()
    assert ended(run) == "finished"
    assert run.read_state().summary == {"again": False}


def test_attempts_go_on_in_one_event_file(launch: Launch) -> None:
    run = launch("step(context, 1); step(context, 2); os.kill(os.getpid(), signal.SIGKILL)")
    assert ended(run) == "interrupted"
    launch("context.emit(PhaseEvent(phase='load')); step(context, 2); step(context, 3)", run)
    assert ended(run) == "finished"
    events, _ = read_events(run.events)
    assert steps(run) == [(1, 1), (1, 2), (2, 2), (2, 3)]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert run.read_state().attempt == 2
    assert [e.attempt for e in events if isinstance(e, PhaseEvent)] == [2]


def test_summary_that_is_no_json_is_a_failure_that_says_so(launch: Launch) -> None:
    run = launch("context.summary['oops'] = object()")
    assert ended(run) == "failed"
    assert "serialize" in error_of(run).message


def test_worker_started_by_hand_takes_the_lock_itself(create: Any, job_script: Any) -> None:
    run = create()
    command = [sys.executable, "-P", *job_script("step(context, 1)"), str(run.path)]
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert run.status() == "finished" and steps(run) == [(1, 1)]


def test_worker_started_by_hand_forgets_old_requests_and_is_interrupted_when_killed(
    create: Any, job_script: Any
) -> None:
    run = create()
    run.control.request_stop()
    kill = job_script("assert not context.stop_requested(); os.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run([sys.executable, "-P", *kill, str(run.path)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert run.status() == "interrupted"


def test_worker_started_by_hand_beside_a_living_one_is_refused(launch: Launch, job_script: Any) -> None:
    run = launch("train_until_stopped(context); raise Stopped")
    until(lambda: steps(run), "a step")
    command = [sys.executable, "-P", *job_script("step(context, -1)"), str(run.path)]
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 2 and "locked by another process" in second.stderr
    supervisor.stop(run)
    assert ended(run) == "stopped"
    assert (1, -1) not in steps(run) and run.read_state().attempt == 1


FULL_DISK = """
set -e
mount -t tmpfs -o size=400k,mode=700 whet-test "$WHET_HOME"
"$@"
"""


@pytest.mark.parametrize("greedy", [False, True], ids=["reserve-left", "nothing-left"])
def test_really_full_disk(tmp_path: Path, job_script: Any, greedy: bool) -> None:
    """On a file system that is really full the run is failed and says why, thanks to its reserve.

    Where another process takes the reserve too, no state can be written any more; then it is interrupted.
    """
    unshare = shutil.which("unshare")
    trial = ["-rm", "mount", "-t", "tmpfs", "t", str(tmp_path)]
    if unshare is None or subprocess.run([unshare, *trial]).returncode != 0:
        pytest.skip("needs user namespaces that may mount a tmpfs")
    home = tmp_path / "home"
    home.mkdir()
    # The greedy neighbour is played by the job: it unlinks the reserve and fills what that frees.
    script = job_script(f"""
        step(context, 1)
        (context.dir.checkpoints / "finished").write_text("kept")
        context.dir.reserve.unlink() if {greedy} else None
        with open(context.dir.checkpoints / "half", "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
    """)
    code = f"""
import json
from typing import Any
from support.fake_runs import FakePlan, make_recipe
from whet.engine.runs import supervisor
from whet.engine.runs.store import RunStore
run = RunStore().create(FakePlan(recipe=make_recipe()), "test")
supervisor.launch(run, worker={script!r})
status = supervisor.wait(run, timeout=30)
state = run.read_state()
events = [json.loads(line)["type"] for line in run.events.read_bytes().splitlines()]
kept = (run.checkpoints / "finished").read_text()
print(json.dumps([status, state.error and state.error.code, events, kept, run.alive()]))
"""
    done = subprocess.run(
        [unshare, "-rm", "sh", "-c", FULL_DISK, "sh", sys.executable, "-P", "-c", code],
        env={
            "PYTHONPATH": f"{SOURCE}:{SOURCE.parent / 'tests'}",
            "WHET_HOME": str(home),
            "PATH": os.environ["PATH"],
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    if greedy:
        assert done.stdout.startswith('["interrupted", null, ["step"'), done.stdout
        assert done.stdout.strip().endswith('"kept", false]')
    else:
        assert done.stdout.strip() == '["failed", "run.disk_full", ["step", "error"], "kept", false]'


def test_whet_log_decides_what_libraries_say() -> None:
    code = """
import logging, os
from whet.engine.runs.worker import _let_speak
from whet.engine.settings import settings
_let_speak(settings().log_level)
logging.getLogger("peft").debug("heard")
print(os.environ["TRANSFORMERS_VERBOSITY"])
"""

    def said(level: str) -> tuple[str, str]:
        environment = {"PYTHONPATH": str(SOURCE), "PATH": os.environ["PATH"], "WHET_LOG": level}
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True
        )
        return done.stdout.strip(), done.stderr.strip()

    assert said("debug") == ("debug", "DEBUG:peft:heard")
    assert said("warning") == ("warning", "")
