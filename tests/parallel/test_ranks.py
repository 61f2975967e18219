"""A run in several processes: one of them writes it, and however one of them ends, none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from support.fake_runs import SOURCE, FakePlan, make_recipe, until, write_job

from whet.engine.parallel.topology import LOOPBACK, VARIABLES, Topology
from whet.engine.plan import Plan
from whet.engine.runs import supervisor
from whet.engine.runs.events import DoneEvent, ErrorEvent, FindingEvent, StepEvent, read_events
from whet.engine.runs.rank_report import rank_log
from whet.engine.runs.store import RunDir, RunStore, Status

Launch = Callable[..., RunDir]

PRELUDE = """
rank = context.topology.rank
(context.dir.path / f"pid-{rank}").write_text(str(os.getpid()))

def all_there():
    return len(list(context.dir.path.glob("pid-*"))) == context.topology.world_size

while not all_there():
    time.sleep(0.01)
"""
LOST_CONTACT = "RuntimeError('[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:9')"


@pytest.fixture
def create(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], RunDir]:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return lambda: RunStore().create(cast(Plan, FakePlan(recipe=make_recipe())), "test")


@pytest.fixture
def launch(create: Callable[[], RunDir], tmp_path: Path) -> Iterator[Launch]:
    """Launch a job in several ranks; whatever still lives at the test's end is killed."""
    started: list[int] = []

    def start(body: str, run: RunDir | None = None, ranks: int = 2, gpus: tuple[str, ...] = ()) -> RunDir:
        run = run or create()
        for old in run.path.glob("pid-*"):
            old.unlink()
        script = write_job(tmp_path, PRELUDE + textwrap.dedent(body), gpus, ranks)
        started.append(supervisor.resume(run, worker=script))
        return run

    yield start
    for pid in started:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def ended(run: RunDir) -> Status:
    """The status once the worker is gone, with no process of the run left; fails rather than hang."""
    status = supervisor.wait(run, timeout=30)
    assert not run.alive(), f"still {status}: {run.log_tail()}"
    until(lambda: not any(lives(pid) for pid in pids(run)), "the end of all ranks", 5)
    return status


def pids(run: RunDir) -> list[int]:
    """Of all ranks, by rank."""
    return [int(path.read_text() or 0) for path in sorted(run.path.glob("pid-*"))]


def lives(pid: int) -> bool:
    """Whether there is such a process, other than one that only waits to be collected."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def steps(run: RunDir) -> list[tuple[int, int]]:
    return [(e.attempt, e.step) for e in read_events(run.events)[0] if isinstance(e, StepEvent)]


def error_of(run: RunDir) -> ErrorEvent:
    """The one error event of the last attempt, which is the last, and the same as in the state."""
    events, _ = read_events(run.events)
    attempt = run.read_state().attempt
    errors = [event for event in events if isinstance(event, ErrorEvent) and event.attempt == attempt]
    state = run.read_state()
    assert len(errors) == 1 and events[-1] is errors[0] and state.error is not None, events
    assert (state.error.code, state.error.message) == (errors[0].code, errors[0].message)
    return errors[0]


def test_ranks_do_one_job_and_one_of_them_writes_it(launch: Launch) -> None:
    run = launch(
        """
        step(context, 1)
        context.summary["rank"] = rank
        context.update(best_checkpoint=f"of-rank-{rank}")
        held = [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if os.path.islink(fd)]
        assert rank == 0 or not any(path.endswith(("/lock", "events.jsonl")) for path in held), held
        assert rank == 0 or context.stop_requested() is None
        place = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")]
        (context.dir.checkpoints / str(rank)).write_text(" ".join(place))
        print(f"rank {rank} was here")
        """,
        ranks=3,
    )
    assert ended(run) == "finished", run.log_tail()
    assert steps(run) == [(1, 1)] and run.read_state().summary == {"rank": 0}
    assert run.read_state().best_checkpoint == "of-rank-0" and run.read_state().attempt == 1
    assert isinstance(read_events(run.events)[0][-1], DoneEvent)
    for rank in range(3):
        assert (run.checkpoints / str(rank)).read_text() == f"{rank} {rank} 3 {LOOPBACK}"
    log = rank_log(run, 2)
    assert "rank 2 was here" in log.read_text() and oct(log.stat().st_mode & 0o777) == "0o600"
    assert "rank 2 was here" not in run.log.read_text()


def test_killed_rank_ends_the_run_and_a_resume_goes_on(launch: Launch) -> None:
    run = launch("""
        print(f"rank {rank} at its last step", flush=True)
        train_until_stopped(context)
        raise Stopped
    """)
    until(lambda: steps(run), "a step")
    until(lambda: "last step" in rank_log(run, 1).read_text(), "the rank's line")
    os.kill(pids(run)[1], signal.SIGKILL)
    assert ended(run) == "failed"
    error = error_of(run)
    assert error.code == "run.rank_died"
    assert "Rank 1 was killed by SIGKILL" in error.message and "rank 1 at its last step" in error.message
    assert f"whet resume {run.id}" in error.hint and "worker-rank1.log" in error.hint
    launch("step(context, 9)", run)
    assert ended(run) == "finished", run.log_tail()
    assert steps(run)[-1] == (2, 9) and run.read_state().error is None


def test_rank_that_dies_while_rank_0_hears_nothing(launch: Launch) -> None:
    """As in an exchange on a GPU, which waits for the dead: rank 0 is killed too, and has said why."""
    run = launch("""
        step(context, 1)
        if rank == 1:
            print("boom", flush=True)
            os._exit(7)
        time.sleep(600)
    """)
    assert ended(run) == "failed"
    error = error_of(run)
    assert error.code == "run.rank_died"
    assert "Rank 1 ended with exit status 7" in error.message and "boom" in error.message


@pytest.mark.parametrize(
    "rank_0", ["train_until_stopped(context); raise Stopped", f"time.sleep(0.1); raise {LOST_CONTACT}"]
)
def test_what_a_rank_raised_is_the_run_s_error(launch: Launch, rank_0: str) -> None:
    """Whether rank 0 notices by polling, or by an exchange that fails, in whatever order."""
    run = launch(
        f"""
        if rank == 0:
            {rank_0}
        if rank == 2:
            time.sleep(0.2)
            raise WhetError("train.not_finite", "The loss is nan at step 3.", "Lower it.")
        raise {LOST_CONTACT}
        """,
        ranks=3,
    )
    assert ended(run) == "failed"
    error = error_of(run)
    assert (error.code, error.hint) == ("train.not_finite", "Lower it.")
    assert error.message == "Rank 2: The loss is nan at step 3."
    assert "Traceback" in rank_log(run, 2).read_text()


@pytest.mark.parametrize(
    "rank_0",
    ["train_until_stopped(context); raise Stopped", f"raise {LOST_CONTACT}", "time.sleep(600)"],
    ids=["polls", "loses contact", "waits for it"],
)
def test_what_a_rank_found_is_the_run_s_finding(launch: Launch, rank_0: str) -> None:
    """Memory that ran out on another GPU: the patch is offered as if it had been rank 0's."""
    run = launch(f"""
        from whet.engine.findings import Finding, Fix
        from whet.engine.runs.events import FindingEvent
        def found(id, title, patch):
            fix = Fix(text="Do it.", patch=patch)
            finding = Finding(id=id, severity="error", title=title, evidence={{"step": 3}}, fix=fix)
            context.emit(FindingEvent(finding=finding))
        if rank == 0:
            {rank_0}
        found("L11", "Memory ran out.", {{"training.batch_size": 1}})
        raise WhetError("run.out_of_memory", "L11: Memory ran out.", "Do it.")
    """)
    assert ended(run) == "failed"
    assert error_of(run).code == "run.out_of_memory"
    (found,) = [e.finding for e in read_events(run.events)[0] if isinstance(e, FindingEvent)]
    assert (found.id, found.title) == ("L11", "Rank 1: Memory ran out.")
    assert found.evidence == {"step": 3, "rank": 1}
    assert found.fix is not None and found.fix.patch == {"training.batch_size": 1}


def test_what_a_rank_found_before_it_failed_of_something_else_stays_unsaid(launch: Launch) -> None:
    """Rank 0 found and said it too: all look at the same model."""
    run = launch("""
        from whet.engine.findings import Finding
        from whet.engine.runs.events import FindingEvent
        context.emit(FindingEvent(finding=Finding(id="L03", severity="error", title="Accepted.")))
        if rank == 0:
            train_until_stopped(context)
            raise Stopped
        raise ValueError("shapes (3,) and (4,)")
    """)
    assert ended(run) == "failed"
    found = [e.finding.title for e in read_events(run.events)[0] if isinstance(e, FindingEvent)]
    assert found == ["Accepted."]


def test_rank_0_s_own_error_stands_over_what_it_does_to_the_others(launch: Launch) -> None:
    run = launch(f"""
        if rank == 0:
            raise ValueError("shapes (3,) and (4,)")
        raise {LOST_CONTACT}
    """)
    assert ended(run) == "failed"
    assert error_of(run).message == "ValueError: shapes (3,) and (4,)"


def test_what_all_ranks_came_to_is_told_as_rank_0_s(launch: Launch) -> None:
    """A loss that is not finite is so in each of them, and any may be heard of first."""
    run = launch("""
        while rank == 0 and context.lost is None:
            time.sleep(0.01)
        raise WhetError("train.not_finite", "The loss is nan at step 3.", "Lower it.")
    """)
    assert ended(run) == "failed"
    assert error_of(run).message == "The loss is nan at step 3."


@pytest.mark.parametrize("leaves", [True, False], ids=["left", "still there"])
def test_gpus_of_ranks_that_left_are_free_for_others(launch: Launch, leaves: bool) -> None:
    """Training is over, and the export goes on in rank 0, on its GPU alone; one that stays keeps its own."""
    run = launch(
        f"""
        from whet.engine.runs import gpu_queue, locks
        worker.LEAVE_SECONDS = 20.0 if {leaves} else 0.1
        if rank == 0:
            context.trained()
            names = ["GPU-a", "GPU-b", "GPU-c"]
            context.summary["held"] = [name for name in names if locks.is_held(locks.gpu_lock(name))]
            context.summary["seen"] = os.environ["CUDA_VISIBLE_DEVICES"]
            (context.dir.path / "exported").touch()
        elif rank == 2 and not {leaves}:
            while not (context.dir.path / "exported").exists():
                time.sleep(0.01)
        """,
        ranks=3,
        gpus=("GPU-a", "GPU-b", "GPU-c"),
    )
    assert ended(run) == "finished", run.log_tail()
    held = ["GPU-a"] if leaves else ["GPU-a", "GPU-b", "GPU-c"]
    assert run.read_state().summary == {"held": held, "seen": ",".join(held)}


def test_killed_rank_0_takes_its_ranks_along(launch: Launch) -> None:
    """Also past a forked child that outlives it, as a DataLoader's worker does."""
    run = launch(
        """
        if rank == 0 and os.fork() == 0:
            (context.dir.path / "forked").write_text(str(os.getpid()))
            time.sleep(600)
        step(context, 1)
        time.sleep(600)
        """,
        ranks=3,
    )
    until(lambda: steps(run), "a step")
    forked = run.path / "forked"
    until(lambda: forked.exists() and forked.read_text(), "the forked child")
    try:
        os.kill(pids(run)[0], signal.SIGKILL)
        assert ended(run) == "interrupted"
    finally:
        os.kill(int(forked.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("how", ["file", "SIGTERM"])
def test_stop_is_rank_0_s_to_decide_and_all_save_what_they_have(launch: Launch, how: str) -> None:
    """A machine that goes away signals every process: the others go on until rank 0 tells them."""
    run = launch("""
        told = context.dir.path / "told"
        if rank == 0:
            train_until_stopped(context)
            told.write_text("now")
        else:
            while not told.exists():
                assert context.stop_requested() is None
                time.sleep(0.01)
        (context.dir.checkpoints / f"of-rank-{rank}").write_text("saved")
        raise Stopped
    """)
    until(lambda: steps(run), "a step")
    if how == "file":
        supervisor.stop(run)
    else:
        os.killpg(pids(run)[0], signal.SIGTERM)
    assert ended(run) == "stopped", run.log_tail()
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["of-rank-0", "of-rank-1"]


def test_stop_at_once_ends_ranks_that_do_not_listen(launch: Launch) -> None:
    run = launch("step(context, 1)\ntime.sleep(600)")
    until(lambda: steps(run), "a step")
    supervisor.stop(run, now=True)
    assert ended(run) == "stopped"


def test_run_that_is_started_from_a_rank_of_something_else_is_none_of_its(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell inside an operator's pod has RANK set; what `whet train` starts there is alone."""
    for name, value in Topology(1, 1, 4).variables("10.0.0.1", 29500).items():
        monkeypatch.setenv(name, value)
    run = launch("context.summary['ranks'] = context.topology.world_size", ranks=1)
    assert ended(run) == "finished" and run.read_state().summary == {"ranks": 1}


def test_ranks_that_somebody_else_starts(create: Callable[[], RunDir], tmp_path: Path) -> None:
    """As torchrun and srun do: one command for all, told apart by variables."""
    run = create()
    script = write_job(tmp_path, PRELUDE + "step(context, rank)\nprint(f'rank {rank} was here')", ranks=3)
    done = in_ranks(3, [*script, str(run.path)])
    assert done == [0, 0, 0], run.log_tail()
    assert ended(run) == "finished" and steps(run) == [(1, 0)]
    assert "rank 2 was here" in rank_log(run, 2).read_text()


def test_rank_that_somebody_else_started_is_the_cause_too(
    create: Callable[[], RunDir], tmp_path: Path
) -> None:
    run = create()
    body = f"if rank == 0:\n    raise {LOST_CONTACT}\nraise MemoryError()"
    done = in_ranks(2, [*write_job(tmp_path, PRELUDE + body, ranks=2), str(run.path)])
    assert done == [1, 1] and ended(run) == "failed"
    assert error_of(run).code == "run.out_of_memory" and error_of(run).message.startswith("Rank 1: ")


def test_rank_that_somebody_else_started_and_that_was_killed(
    create: Callable[[], RunDir], tmp_path: Path
) -> None:
    """On another machine maybe: nobody here sees how it ended, but it left no last word."""
    run = create()
    body = f"""
from whet.engine.runs import peers
peers.CAUSE_SECONDS = 0.2
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if rank == 0:
    report = context.dir.path / "worker-rank2.json"
    while not report.exists():
        time.sleep(0.01)
raise {LOST_CONTACT}
"""
    done = in_ranks(3, [*write_job(tmp_path, PRELUDE + body, ranks=3), str(run.path)])
    assert done == [1, -signal.SIGKILL, 1] and ended(run) == "failed"
    error = error_of(run)
    assert error.code == "run.rank_died" and "lost with rank 1 " in error.message
    assert f"whet resume {run.id}" in error.hint


def test_exchange_that_fails_in_all_ranks_is_no_dead_rank(
    create: Callable[[], RunDir], tmp_path: Path
) -> None:
    """As NCCL's first one in a container with little shared memory; a resume alone would not help."""
    run = create()
    body = f"""
from whet.engine.runs import peers
peers.CAUSE_SECONDS = 0.2
report = context.dir.path / "worker-rank1.json"
while rank == 0 and not report.exists():
    time.sleep(0.01)
raise {LOST_CONTACT}
"""
    done = in_ranks(2, [*write_job(tmp_path, PRELUDE + body, ranks=2), str(run.path)])
    assert done == [1, 1] and ended(run) == "failed"
    error = error_of(run)
    assert error.code == "run.exchange_failed" and "whet doctor" in error.hint


def test_exchange_that_fails_in_another_rank_first(launch: Launch) -> None:
    run = launch(f"""
        from whet.engine.runs import peers
        peers.CAUSE_SECONDS = 0.2
        if rank == 0:
            train_until_stopped(context)
            raise Stopped
        raise {LOST_CONTACT}
    """)
    assert ended(run) == "failed"
    assert error_of(run).code == "run.exchange_failed" and "Connection closed" in error_of(run).message


def test_other_than_the_planned_number_of_ranks_is_refused(
    create: Callable[[], RunDir], tmp_path: Path
) -> None:
    """Each would take another share of a step than the plan says."""
    run = create()
    done = in_ranks(2, [*write_job(tmp_path, "step(context, 1)", ranks=4), str(run.path)])
    assert done == [1, 0] and ended(run) == "failed" and steps(run) == []
    error = error_of(run)
    assert error.code == "ranks.not_as_planned" and "hardware.gpus=2" in error.hint


@pytest.mark.parametrize("entry", ["worker", "rank"])
def test_contradictory_variables_are_refused_before_anything_is_written(
    create: Callable[[], RunDir], entry: str
) -> None:
    run = create()
    command = [sys.executable, "-P", "-m", f"whet.engine.runs.{entry}", str(run.path)]
    environment = os.environ | {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "RANK=3 LOCAL_RANK=3 WORLD_SIZE=2" in done.stderr
    assert "Traceback" not in done.stderr and run.read_state().attempt == 0


def in_ranks(size: int, command: list[str]) -> list[int]:
    """The exit statuses of ``command`` in each rank, started as a launcher does."""
    ranks: list[subprocess.Popen[Any]] = []
    try:
        for rank in range(size):
            variables = Topology(rank, rank, size).variables(LOOPBACK, 29500)
            ranks.append(subprocess.Popen([sys.executable, "-P", *command], env=os.environ | variables))
        return [process.wait(30) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait(5)
