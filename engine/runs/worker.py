"""The one process that writes a run: ``python -P -m whet.engine.runs.worker RUN_DIR``.

It holds the run's lock (and its GPUs') until it exits, and every way a job can end becomes a state and an
event. Of a run in several processes it is rank 0.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import WhetError
from ..importing import importing
from ..parallel.topology import as_planned, here
from ..settings import settings
from . import locks, rank
from .context import RunContext, Stopped
from .events import EventLog, FindingEvent
from .failures import describe_failure
from .files import private_file
from .gpu_queue import keep_first_gpu, planned_gpus, planned_ranks, take_gpus
from .peers import RANK, started_peers
from .rank_report import RankError
from .store import RunDir

Job = Callable[[RunContext], None]
ChooseGpus = Callable[[RunContext], Sequence[str]]
CountRanks = Callable[[RunContext], int]

ENDED, FAILED, REFUSED = 0, 1, 2
"""Exit statuses: ended as asked (finished or stopped), failed, not started."""

GRACE_SECONDS = 5.0
"""How long a job may take to notice a stop at once before its whole process group is killed."""
SAME_REQUEST_SECONDS = 3.0
"""SIGTERMs so close together are one request: where a machine is taken away, its scheduler signals every
process of the job, and torchrun or a script passes on the one that it got."""
LEAVE_SECONDS = 10.0
"""How long rank 0 waits, once all is trained, for the others to leave their GPUs to other runs."""
RESERVE_BYTES = 64 << 10
"""Size of RunDir.reserve."""


def training_job(context: RunContext) -> None:
    """The real job; its imports cost seconds and memory, so they wait until the locks are held."""
    _let_speak(settings().log_level)
    if not context.topology.alone:
        # Else accelerate gives every rank all cores of a CPU.
        os.environ.setdefault("OMP_NUM_THREADS", str(context.plan.resolved.threads))
    with importing():
        from ..methods.jobs import job_of

        job = job_of(context)
    job(context)


def _let_speak(level: str) -> None:
    """How much libraries write to worker.log; three of them read a variable of their own when imported."""
    logging.basicConfig(level=level.upper())
    for name in ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, level)


def main(
    argv: Sequence[str] | None = None,
    job: Job = training_job,
    choose_gpus: ChooseGpus = planned_gpus,
    count_ranks: CountRanks = planned_ranks,
    peer: Sequence[str] = RANK,
) -> int:
    """Parse the command line, take the run's lock and run one attempt; returns the exit status.

    Under torchrun, srun or an operator (RANK is set) rank 0 does that, and the others their part of the job;
    else the worker starts them itself, as ``peer``.
    """
    try:
        if not here().is_main:
            return rank.main(argv, job)
    except WhetError as error:
        print(f"The worker did not start: {error}", file=sys.stderr, flush=True)
        return REFUSED
    parser = argparse.ArgumentParser(prog="python -P -m whet.engine.runs.worker")
    parser.add_argument("directory", type=Path, help="the run's directory")
    parser.add_argument("--lock-fd", type=int, help="descriptor of the run's lock, held by the launcher")
    options = parser.parse_args(argv)
    os.umask(0o077)
    faulthandler.enable()
    run = RunDir(options.directory.absolute())
    try:
        fd = options.lock_fd
        lock = locks.hold(run.lock) if fd is None else locks.adopt(run.lock, fd)
        if fd is None:  # started by hand: what a launcher would have done
            run.control.clear()
            run.write_state(launched=time.time())
        context = _open(run)
    except (WhetError, OSError) as error:
        print(f"The worker of {run.path} did not start: {error}", file=sys.stderr, flush=True)
        return REFUSED
    lock.write_holder(f"pid {os.getpid()}")
    return run_worker(context, job, choose_gpus, count_ranks, peer)


def run_worker(
    context: RunContext,
    job: Job,
    choose_gpus: ChooseGpus,
    count_ranks: CountRanks = planned_ranks,
    peer: Sequence[str] = RANK,
) -> int:
    """Run one attempt to its end, whatever that is; the caller holds the run's lock."""
    run = context.dir
    ended = threading.Event()
    signals = Signals(context)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: signals.count(number))
    threading.Thread(target=_enforce_stop, args=(context, ended), daemon=True).start()
    try:
        _allocate(run.reserve)
        ranks = count_ranks(context)
        if context.topology.alone:
            gpus = take_gpus(context, choose_gpus(context), ranks)
        else:  # whoever started the ranks gave them their GPUs
            gpus = []
            as_planned(context.topology, ranks)
        context.update(status="running", waiting_for=[], behind=[], gpu=gpus[0] if gpus else None)
        with started_peers(context, ranks, peer) as peers:
            context.on_trained = lambda: keep_first_gpu() if peers.gone(LEAVE_SECONDS) else None
            job(context)
        context.update(summary=context.summary)
    except Stopped:
        refused = context.close("stopped")
    except BaseException as error:  # also SystemExit from a library: a worker never ends without saying how
        _log(traceback.format_exc())
        _fail(context, error)
        return FAILED
    else:
        refused = context.close("finished")
    finally:
        ended.set()
    for problem in refused:
        _log(f"The end of the run could not be written: {problem}")
    return FAILED if refused else ENDED


def _open(run: RunDir) -> RunContext:
    """Begin the next attempt: number it, and open the event log behind what earlier attempts wrote."""
    attempt = run.read_state().attempt + 1
    _log(f"--- attempt {attempt}, pid {os.getpid()}, {time.strftime('%Y-%m-%d %H:%M:%S')}")
    run.write_state(
        status="queued",
        attempt=attempt,
        pid=os.getpid(),
        error=None,
        gpu=None,
        waiting_for=[],
        behind=[],
        phase=None,
    )
    return RunContext(run, attempt, EventLog(run.events, attempt))


class Signals:
    """Counts requests to stop that come as signals."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self._terminated = -SAME_REQUEST_SECONDS

    def count(self, number: int) -> None:
        """Called by the signal's handler. Ctrl-C is a person's, who may mean each one."""
        now = time.monotonic()
        again = number == signal.SIGTERM and now - self._terminated < SAME_REQUEST_SECONDS
        if number == signal.SIGTERM:
            self._terminated = now
        if not again:
            self.context.signals += 1


def _enforce_stop(context: RunContext, ended: threading.Event) -> None:
    """End the process when the job does not notice a stop at once: it may sit in a long C call, or in an
    exchange with a rank that is gone."""
    asked_at: float | None = None
    while not ended.wait(0.1):
        if context.stop_requested() != "now":
            continue
        asked_at = asked_at or time.monotonic()
        if time.monotonic() - asked_at >= GRACE_SECONDS:
            context.close("stopped") if context.lost is None else _fail(context, context.lost)
            _kill_group()


def _fail(context: RunContext, error: BaseException) -> None:
    """End the attempt by an error, with what another rank found where it is that one's."""
    if isinstance(error, RankError) and error.finding is not None:
        with suppress(OSError):  # a full disk: the end still has the reserve
            context.emit(FindingEvent(finding=error.finding))
    context.close("failed", describe_failure(error, context.dir.path))


def _kill_group() -> None:
    """Kill this process and what it started; a worker leads its session unless a person ran it by hand."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(FAILED)


def _allocate(reserve: Path) -> None:
    fd = private_file(reserve, os.O_WRONLY)
    try:
        os.posix_fallocate(fd, 0, RESERVE_BYTES)
    finally:
        os.close(fd)


def _log(text: str) -> None:
    """To worker.log; a full disk leaves nowhere to say it, and the state or the free lock says enough."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        return


if __name__ == "__main__":
    sys.exit(main())
