"""One run a GPU, in order of start. The GPUs here are names: what is tested is the queue, not CUDA."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.fake_runs import until, write_job

from whet.engine.errors import WhetError
from whet.engine.runs import gpu_queue, locks, supervisor
from whet.engine.runs.context import RunContext
from whet.engine.runs.events import PhaseEvent, read_events
from whet.engine.runs.store import RunDir, RunStore

Launch = Callable[..., RunDir]
GPU = ("GPU-aaaa",)
SHOW = "context.summary['sees'] = os.environ['CUDA_VISIBLE_DEVICES']"
LOOP = f"{SHOW}\ntrain_until_stopped(context)\nraise Stopped"


def waits(run: RunDir) -> list[str]:
    events, _ = read_events(run.events)
    return [event.detail for event in events if isinstance(event, PhaseEvent) and event.phase == "wait"]


def test_free_gpu_is_held_and_the_only_one_seen(store: RunStore, launch: Launch) -> None:
    run = launch(SHOW + "\ncontext.summary['state'] = context.dir.read_state().gpu", gpus=GPU)
    assert supervisor.wait(run, 30) == "finished"
    assert run.read_state().summary == {"sees": "GPU-aaaa", "state": "GPU-aaaa"}
    assert waits(run) == [] and run.read_state().gpu is None
    assert locks.holder(locks.gpu_lock("GPU-aaaa")) == run.id


def test_taken_gpu_means_waiting_in_order_of_start(store: RunStore, launch: Launch) -> None:
    with locks.hold(locks.gpu_lock("GPU-aaaa")) as taken:
        taken.write_holder("someone-else")
        first = launch(LOOP, gpus=GPU)
        until(lambda: waits(first), "the first to wait")
        second = launch(LOOP, gpus=GPU)
        until(lambda: waits(second), "the second to wait")
        assert "GPU-aaaa is held by someone-else; next in line" in waits(first)
        assert waits(second)[-1].endswith(f"1 ahead: {first.id}")
        assert first.read_state().waiting_for == ["GPU-aaaa"]
        assert first.read_state().behind == ["someone-else"]
        assert second.summary().state.behind == ["someone-else", first.id]
        assert first.read_state().step == second.read_state().step == 0
    until(lambda: first.status() == "running", "the first to run")
    until(lambda: waits(second)[-1] == f"GPU-aaaa is held by {first.id}; next in line", "the next in line")
    assert second.status() == "waiting"
    supervisor.stop(first)
    assert supervisor.wait(first, 30) == "stopped"
    until(lambda: second.status() == "running", "the second to run")
    assert second.read_state().waiting_for == second.read_state().behind == []


def test_later_run_leaves_a_free_gpu_to_the_earlier_one(store: RunStore, launch: Launch) -> None:
    """The earlier waiter is frozen while the GPU falls free: the later one sees that and does not take it."""
    with locks.hold(locks.gpu_lock("GPU-aaaa")):
        first = launch(LOOP, gpus=GPU)
        until(lambda: waits(first), "the first to wait")
        second = launch(LOOP, gpus=GPU)
        until(lambda: waits(second), "the second to wait")
        pid = first.read_state().pid or 0
        os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 3 * gpu_queue.POLL_SECONDS
    while time.monotonic() < deadline:
        assert second.status() == "waiting"
        time.sleep(0.02)
    os.kill(pid, signal.SIGCONT)
    until(lambda: first.status() == "running", "the first to run")


def test_dead_waiter_holds_nobody_up(store: RunStore, launch: Launch) -> None:
    with locks.hold(locks.gpu_lock("GPU-aaaa")):
        first = launch(LOOP, gpus=GPU)
        until(lambda: waits(first), "the first to wait")
        second = launch(LOOP, gpus=GPU)
        until(lambda: waits(second), "the second to wait")
        supervisor.stop(first)
        assert supervisor.wait(first, 30) == "stopped"
    until(lambda: second.status() == "running", "the second to run")


def test_any_free_one_of_several_will_do(store: RunStore, launch: Launch) -> None:
    two = ("GPU-aaaa", "GPU-bbbb")
    with locks.hold(locks.gpu_lock("GPU-aaaa")):
        run = launch(SHOW, gpus=two)
        assert supervisor.wait(run, 30) == "finished"
    assert run.read_state().summary == {"sees": "GPU-bbbb"}


def test_run_of_several_ranks_waits_for_all_its_gpus_and_holds_none_meanwhile(
    store: RunStore, tmp_path: Path, launch: Launch, create: Callable[..., RunDir]
) -> None:
    """One that started later, for one GPU, does not take from it what falls free."""
    names = ("GPU-aaaa", "GPU-bbbb", "GPU-cccc")
    script = write_job(tmp_path, SHOW, names, ranks=2)
    both = create()
    taken = [locks.hold(locks.gpu_lock(name)) for name in names[:2]]
    pid = supervisor.launch(both, worker=script)
    try:
        until(lambda: waits(both), "the run of two to wait")
        assert both.read_state().waiting_for == list(names)
        assert not locks.is_held(locks.gpu_lock("GPU-cccc"))
        later = launch(LOOP, gpus=("GPU-cccc",))
        until(lambda: waits(later), "the later run to wait")
        taken[1].release()
        assert supervisor.wait(both, 30) == "finished", both.log_tail()
        assert both.read_state().summary == {"sees": "GPU-bbbb,GPU-cccc"}
        assert locks.holder(locks.gpu_lock("GPU-bbbb")) == both.id
        until(lambda: later.status() == "running", "the later run to run")
    finally:
        for lock in taken:
            lock.release()
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def test_two_runs_of_two_ranks_never_hold_what_the_other_waits_for(
    store: RunStore, tmp_path: Path, create: Callable[..., RunDir]
) -> None:
    script = write_job(tmp_path, SHOW, ("GPU-aaaa", "GPU-bbbb"), ranks=2)
    runs = [create(), create()]
    pids = [supervisor.launch(run, worker=script) for run in runs]
    try:
        assert [supervisor.wait(run, 30) for run in runs] == ["finished", "finished"]
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def test_run_for_another_gpu_does_not_queue_behind(store: RunStore, launch: Launch) -> None:
    with locks.hold(locks.gpu_lock("GPU-aaaa")):
        first = launch(LOOP, gpus=GPU)
        until(lambda: waits(first), "the first to wait")
        other = launch(SHOW, gpus=("GPU-bbbb",))
        assert supervisor.wait(other, 30) == "finished"
        assert first.status() == "waiting"


def test_cpu_plan_takes_no_gpu_and_a_vanished_gpu_is_an_error(
    create: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create()

    def context(device: str, ranks: int = 1) -> RunContext:
        plan = SimpleNamespace(resolved=SimpleNamespace(device=device, ranks=ranks))
        recipe = SimpleNamespace(adapter=SimpleNamespace(kind="lora"))
        alone = SimpleNamespace(alone=True)
        return cast(RunContext, SimpleNamespace(dir=run, plan=plan, recipe=recipe, topology=alone))

    def machine(*uuids: str) -> Any:
        gpus = [SimpleNamespace(uuid=uuid, name=uuid[:6], memory_total=1) for uuid in uuids]
        return lambda: SimpleNamespace(gpus=gpus, gpu_note="no NVIDIA driver")

    monkeypatch.setattr(gpu_queue, "inspect_machine", machine("GPU-1", "GPU-2"))
    assert gpu_queue.planned_gpus(context("cpu")) == []
    assert gpu_queue.planned_gpus(context("cuda")) == ["GPU-1", "GPU-2"]
    monkeypatch.setattr(gpu_queue, "inspect_machine", machine("GPU-B-1", "GPU-A-1", "GPU-A-2"))
    assert gpu_queue.planned_gpus(context("cuda", ranks=2)) == ["GPU-A-1", "GPU-A-2"]
    with pytest.raises(WhetError, match="3 GPUs of one kind, and 2 are visible") as caught:
        gpu_queue.planned_gpus(context("cuda", ranks=3))
    assert caught.value.code == "run.no_gpu"
    monkeypatch.setattr(gpu_queue, "inspect_machine", machine())
    with pytest.raises(WhetError, match="no NVIDIA driver") as caught:
        gpu_queue.planned_gpus(context("cuda"))
    assert caught.value.code == "run.no_gpu"
    run.plan.unlink()  # as of a job on files of no run: it takes what there is
    assert gpu_queue.planned_gpus(context("cuda")) == []
