"""Start, stop, resume and follow runs from any front end. No daemon: locks and directories are the truth."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from ..errors import WhetError
from ..processes import environment
from . import locks
from .control import StopRequest
from .events import Event, read_events
from .failures import readable_disk_errors
from .files import private_file
from .state import Status
from .store import RunDir

WORKER = ("-m", "whet.engine.runs.worker")
POLL_SECONDS = 0.1

# What a checkpoint was made with cannot change under it; everything about how long, how often and what comes
# after can.
RESUMABLE_OVERRIDES = ("training.", "eval.", "sampling.", "export.", "checks.", "hardware.", "accept")


def launch(run: RunDir, worker: Sequence[str] = WORKER) -> int:
    """Start the run's worker, detached from this process and its terminal; returns its pid.

    The run's lock is taken here and handed to the worker as an open descriptor: there is no moment in which
    two launchers both find it free, nor one in which a starting run looks dead.
    ``worker`` is what the interpreter runs. Raises WhetError ``run.alive``, ``run.finished``,
    ``run.disk_full``.
    """
    with _exclusively(run) as lock:
        return _start(run, lock, worker)


def resume(run: RunDir, extra_overrides: Sequence[str] | None = None, worker: Sequence[str] = WORKER) -> int:
    """Start a worker that goes on from the last finished checkpoint; returns its pid.

    ``extra_overrides`` (``training.max_steps=60``) re-plan the run; model, data, method, adapter are fixed.
    Raises WhetError ``run.alive``, ``run.finished``, ``run.fixed_setting``.
    """
    with _exclusively(run) as lock:
        if extra_overrides:
            _replan(run, extra_overrides)
        return _start(run, lock, worker)


def stop(run: RunDir, now: bool = False) -> StopRequest:
    """Ask the worker to finish its step, checkpoint and end; a second time, or ``now``, at once.

    Returns what was asked. Raises WhetError ``run.not_running`` when no worker is there to hear it.
    """
    _hears(run, "stop")
    return run.control.request_stop(now)


def request_checkpoint(run: RunDir) -> None:
    """Ask the worker for a checkpoint after its step. Raises WhetError ``run.not_running``."""
    _hears(run, "checkpoint")
    run.control.request_checkpoint()


def wait(run: RunDir, timeout: float | None = None) -> Status:
    """The run's status once its worker is gone, or after ``timeout`` seconds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while run.alive() and (deadline is None or time.monotonic() < deadline):
        time.sleep(POLL_SECONDS)
    return run.status()


def follow(run: RunDir, offset: int = 0) -> Iterator[Event]:
    """All events from byte ``offset`` on, as they come; ends when the worker is gone and all is read."""
    while True:
        alive = run.alive()  # asked before reading, so that the last events are never missed
        events, offset = read_events(run.events, offset)
        yield from events
        if not alive:
            return
        if not events:
            time.sleep(POLL_SECONDS)


def _hears(run: RunDir, asked: str) -> None:
    if not run.alive():
        raise WhetError("run.not_running", f"Run {run.id} is {run.status()}, so there is nothing to {asked}.")


def _exclusively(run: RunDir) -> locks.Lock:
    """The run's lock, when the run can be started. Raises ``run.alive`` or ``run.finished``."""
    lock = locks.try_hold(run.lock, locks.PATIENCE)
    if lock is None:
        state = run.read_state()
        raise WhetError(
            "run.alive",
            f"Run {run.id} is {state.status} (pid {state.pid}, started by {state.started_by}).",
            f"Watch it with `whet attach {run.id}`, end it with `whet stop {run.id}`.",
        )
    if run.read_state().status == "finished":
        lock.release()
        hint = f"Its results are in {run.export}; to train further start a new run."
        if run.job.exists():
            hint = f"`whet show {run.id}` has its results; start a new job to do it again."
        raise WhetError("run.finished", f"Run {run.id} is finished.", hint)
    return lock


def _start(run: RunDir, lock: locks.Lock, worker: Sequence[str]) -> int:
    with readable_disk_errors(run.path):
        run.control.clear()
        run.write_state(
            status="queued", launched=time.time(), error=None, waiting_for=[], behind=[], pid=None
        )
        log = private_file(run.log, os.O_WRONLY | os.O_APPEND)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", *worker, str(run.path), "--lock-fd", str(lock.fd)],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock.fd],
                env=environment(),
            )
        finally:
            os.close(log)
    # A launcher that lives on (the TUI, the MCP server) must collect its dead child.
    threading.Thread(target=process.wait, daemon=True).start()
    return process.pid


def _replan(run: RunDir, overrides: Sequence[str]) -> None:
    """Plan again with the overrides and keep the new recipe and plan in the run's directory."""
    from ..plan import make_plan
    from ..recipe_files import parse_override, patched

    if run.job.exists():
        raise WhetError(
            "run.fixed_setting",
            f"{run.id} is a job that starts over as it was asked; refused: {', '.join(overrides)}.",
            f"Start a new one, or go on with it: whet resume {run.id}",
        )
    fixed = [text for text in overrides if not text.startswith(RESUMABLE_OVERRIDES)]
    if fixed:
        raise WhetError(
            "run.fixed_setting",
            f"A resumed run keeps its model, data, method and adapter; refused: {', '.join(fixed)}.",
            "Start a new run for these; training, eval, sampling, export and checks settings may change.",
        )
    recipe = patched(run.load_plan().recipe, dict(map(parse_override, overrides)))
    plan = make_plan(recipe, overrides=tuple(overrides))
    run.write_plan(plan)
