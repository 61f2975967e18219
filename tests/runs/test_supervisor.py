"""Starting, stopping, resuming and following, from processes that come and go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_runs import FakePlan, until

from whet.engine.errors import WhetError
from whet.engine.processes import ALLOCATOR, SPIN_COUNT
from whet.engine.runs import supervisor
from whet.engine.runs.events import DoneEvent, Event, StepEvent, read_events
from whet.engine.runs.store import RunDir, RunStore

Launch = Callable[..., RunDir]
LOOP = "train_until_stopped(context)\nraise Stopped"


def steps(run: RunDir) -> list[int]:
    return [event.step for event in read_events(run.events)[0] if isinstance(event, StepEvent)]


def test_worker_survives_the_death_of_its_launcher_s_process_group(
    store: RunStore, create: Any, job_script: Any
) -> None:
    run = create()
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom whet.engine.runs import supervisor\n"
        "from whet.engine.runs.store import RunDir\n"
        "supervisor.launch(RunDir(Path(sys.argv[1])), worker=sys.argv[2:])\n"
        "print('launched', flush=True)\ntime.sleep(600)"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(run.path), *job_script(LOOP)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert launcher.stdout is not None and launcher.stdout.readline() == b"launched\n"
    assert run.alive()  # from the first moment on
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
    launcher.stdout.close()
    seen = len(until(lambda: steps(run), "a step"))
    until(lambda: len(steps(run)) > seen + 5, "steps after the launcher's death")
    assert run.status() == "running"
    supervisor.stop(run)
    assert supervisor.wait(run, 30) == "stopped"


def test_living_run_is_neither_resumed_nor_launched_again(launch: Launch) -> None:
    run = launch(LOOP)
    for start in (supervisor.resume, supervisor.launch):
        with pytest.raises(WhetError, match=run.id) as caught:
            start(run)
        assert caught.value.code == "run.alive" and f"whet stop {run.id}" in caught.value.hint
    until(lambda: steps(run), "a step")
    supervisor.stop(run)
    assert supervisor.wait(run, 30) == "stopped"
    assert run.read_state().attempt == 1


def test_two_launchers_at_the_same_moment_start_one_worker(create: Any, job_script: Any) -> None:
    run, script = create(), job_script(LOOP)
    outcomes: list[str] = []

    def start() -> None:
        try:
            supervisor.launch(run, worker=script)
            outcomes.append("started")
        except WhetError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: steps(run), "a step")
    supervisor.stop(run)
    assert supervisor.wait(run, 30) == "stopped"
    assert sorted(outcomes) == ["run.alive"] * 3 + ["started"]
    assert run.read_state().attempt == 1


def test_stopped_run_resumes_and_forgets_the_old_request(launch: Launch) -> None:
    run = launch(LOOP)
    until(lambda: steps(run), "a step")
    supervisor.stop(run)
    supervisor.stop(run)
    assert supervisor.wait(run, 30) == "stopped"
    launch("context.summary['asked'] = context.stop_requested()", run)
    assert supervisor.wait(run, 30) == "finished"
    assert run.read_state().summary == {"asked": None} and run.read_state().attempt == 2


def test_finished_run_is_not_resumed_and_an_idle_one_not_stopped(launch: Launch, create: Any) -> None:
    run = launch("step(context, 1)")
    assert supervisor.wait(run, 30) == "finished"
    with pytest.raises(WhetError) as caught:
        supervisor.resume(run)
    assert caught.value.code == "run.finished" and str(run.export) in caught.value.hint
    assert not run.alive()
    for idle, status in ((run, "finished"), (create(), "queued")):
        with pytest.raises(WhetError, match=status) as caught:
            supervisor.stop(idle)
        assert caught.value.code == "run.not_running"
        assert idle.control.stop_requested() is None


def test_checkpoint_is_asked_of_a_living_run_only(launch: Launch) -> None:
    run = launch("while not context.take_checkpoint_request():\n    time.sleep(0.01)\nstep(context, 1)")
    until(lambda: run.status() == "running", "the run to run")
    supervisor.request_checkpoint(run)
    assert supervisor.wait(run, 30) == "finished" and steps(run) == [1]
    with pytest.raises(WhetError, match="finished") as caught:
        supervisor.request_checkpoint(run)
    assert caught.value.code == "run.not_running"


def test_failed_run_resumes_and_its_error_is_gone(launch: Launch) -> None:
    run = launch("raise ValueError('once')")
    assert supervisor.wait(run, 30) == "failed"
    launch("step(context, 1)", run)
    assert supervisor.wait(run, 30) == "finished"
    assert run.read_state().error is None


def test_follow_yields_everything_and_ends_with_the_worker(launch: Launch) -> None:
    run = launch("for n in range(1, 60):\n    step(context, n)\n    time.sleep(0.005)")
    events: list[Event] = list(supervisor.follow(run))
    assert [event.step for event in events if isinstance(event, StepEvent)] == list(range(1, 60))
    assert isinstance(events[-1], DoneEvent)
    assert not run.alive()
    _, end = read_events(run.events)
    assert list(supervisor.follow(run, end)) == []
    assert len(list(supervisor.follow(run))) == len(events)


def test_follow_ends_when_the_worker_is_killed(launch: Launch) -> None:
    run = launch("step(context, 1)\ntime.sleep(600)")
    following = supervisor.follow(run)
    first = next(following)
    assert isinstance(first, StepEvent)
    os.kill(run.read_state().pid or 0, signal.SIGKILL)
    assert list(following) == []
    assert run.status() == "interrupted"


def test_wait_gives_up_at_its_timeout(launch: Launch) -> None:
    run = launch(LOOP)
    until(lambda: steps(run), "a step")
    assert supervisor.wait(run, timeout=0.05) == "running"


def test_resume_with_overrides_plans_again(
    launch: Launch, job_script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launch("raise ValueError('once')")
    assert supervisor.wait(run, 30) == "failed"
    asked: list[Any] = []

    def plan_again(recipe: Any, *, overrides: Any) -> FakePlan:
        asked.append(overrides)
        training = recipe.training.model_copy(update={"max_steps": 60})
        return FakePlan(recipe=recipe.model_copy(update={"training": training}))

    monkeypatch.setattr("whet.engine.plan.make_plan", plan_again)
    monkeypatch.setattr(RunDir, "load_plan", lambda run: FakePlan.model_validate_json(run.plan.read_bytes()))
    with pytest.raises(WhetError, match=r"adapter\.rank=4") as caught:
        supervisor.resume(run, ["training.max_steps=60", "adapter.rank=4"], worker=job_script("pass"))
    assert caught.value.code == "run.fixed_setting" and not asked and not run.alive()
    supervisor.resume(run, ["training.max_steps=60"], worker=job_script("pass"))
    assert supervisor.wait(run, 30) == "finished"
    assert asked == [("training.max_steps=60",)]
    assert "max_steps: 60" in run.recipe.read_text() and '"max_steps": 60' in run.plan.read_text()


def test_workers_leave_no_zombies(launch: Launch) -> None:
    run = launch("context.update(summary={'pid': os.getpid()}); context.summary['pid'] = os.getpid()")
    assert supervisor.wait(run, 30) == "finished"
    pid = run.read_state().summary["pid"]
    until(lambda: not Path(f"/proc/{pid}").exists(), "the worker's end", 10)


@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        ({}, {"GOMP_SPINCOUNT": SPIN_COUNT, "PYTORCH_ALLOC_CONF": ALLOCATOR}),
        (
            {"OMP_WAIT_POLICY": "ACTIVE", "PYTORCH_ALLOC_CONF": "backend:native"},
            {"OMP_WAIT_POLICY": "ACTIVE", "PYTORCH_ALLOC_CONF": "backend:native"},
        ),
        (
            {"GOMP_SPINCOUNT": "7", "PYTORCH_CUDA_ALLOC_CONF": "backend:native"},
            {"GOMP_SPINCOUNT": "7", "PYTORCH_CUDA_ALLOC_CONF": "backend:native"},
        ),
    ],
)
def test_a_worker_s_threads_spin_briefly_and_its_segments_grow_unless_told_otherwise(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, asked: dict[str, str], seen: dict[str, str]
) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    run = launch(f"context.summary |= {{n: os.environ[n] for n in {names} if n in os.environ}}")
    assert supervisor.wait(run, 30) == "finished"
    assert run.read_state().summary == seen
