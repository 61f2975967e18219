"""A rank other than 0 of a run: ``python -P -m whet.engine.runs.rank RUN_DIR``, with RANK and the like set.

It computes what the worker (rank 0) computes with it, and writes nothing of the run: no lock, event or state.
It ends with its launcher: the read end of a pipe tells it, whose other end only rank 0 has open.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import WhetError
from ..parallel.topology import Topology, here
from .context import RunContext, Stopped
from .files import private_file
from .peer_context import PeerContext
from .rank_report import BEGUN, forget_report, rank_log, report_end
from .store import RunDir

ENDED, FAILED, REFUSED, LEFT_ALONE = 0, 1, 2, 3
"""Exit statuses: the job ended, it failed, it was not started, rank 0 is gone."""


def main(argv: Sequence[str] | None, job: Callable[[RunContext], None]) -> int:
    """Parse the command line and do this rank's part of ``job``; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -P -m whet.engine.runs.rank")
    parser.add_argument("directory", type=Path, help="the run's directory")
    parser.add_argument("--lifeline", type=int, help="descriptor that reads its end when rank 0 is gone")
    options = parser.parse_args(argv)
    os.umask(0o077)
    faulthandler.enable()
    run = RunDir(options.directory.absolute())
    try:
        place = here()
        if place.is_main:
            raise WhetError(
                "ranks.contradictory",
                "RANK is 0 or missing, and rank 0 is the run's worker.",
                "Start python -P -m whet.engine.runs.worker by torchrun or srun; it finds its rank itself.",
            )
        if options.lifeline is None:  # started by torchrun, srun or an operator, with their own outputs
            _print_to(rank_log(run, place.rank))
        else:
            threading.Thread(target=_leave_with_rank_0, args=(options.lifeline,), daemon=True).start()
        context = PeerContext(run)
    except (WhetError, OSError) as error:
        print(f"This rank of {run.path} did not start: {error}", file=sys.stderr, flush=True)
        return REFUSED
    return run_rank(context, place, job)


def run_rank(context: PeerContext, place: Topology, job: Callable[[RunContext], None]) -> int:
    """Do this rank's part to its end, whatever that is, and leave a report of it."""
    run, rank = context.dir, place.rank
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    _log(f"{BEGUN} attempt {context.attempt}, rank {rank}, pid {os.getpid()}, {now}")
    forget_report(run, rank)
    # A terminal or a preempted machine signals every process; rank 0 decides and tells at the step's end.
    # Handlers, since an ignored signal would stay ignored in whatever the job starts.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    try:
        job(context)
    except Stopped:
        report_end(run, rank)
    except BaseException as error:  # also SystemExit from a library: a rank never ends without saying how
        _log(traceback.format_exc())
        report_end(run, rank, error, context.found)
        return FAILED
    else:
        report_end(run, rank)
    return ENDED


def _leave_with_rank_0(lifeline: int) -> None:
    """Nothing is ever written to the pipe: reading returns when its last writer has closed it."""
    os.set_inheritable(lifeline, False)
    os.read(lifeline, 1)
    os._exit(LEFT_ALONE)


def _print_to(log: Path) -> None:
    fd = private_file(log, os.O_WRONLY | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(fd, standard)
    os.close(fd)


def _log(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        return


if __name__ == "__main__":
    from .worker import training_job

    status = main(None, training_job)
    # It has nothing to tidy up, and taking torch apart takes seconds for which rank 0 would wait.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
