"""Rank 0's hold on the run's other ranks: it starts them, hears of their deaths, and none outlives it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..errors import WhetError
from ..parallel.topology import LOOPBACK, Topology
from ..processes import environment
from .context import RunContext, Stopped
from .failures import lost_contact
from .files import private_file
from .rank_report import (
    broken_exchange,
    death_of,
    failure_of,
    forget_report,
    rank_log,
    read_report,
    silence_of,
)

RANK = ("-m", "whet.engine.runs.rank")
"""What the interpreter runs for a rank."""
END_SECONDS = 60.0
"""How long the ranks of a job that ended may take to end as well."""
KILL_SECONDS = 2.0
"""How long ranks that are told to leave at once may take."""
CAUSE_SECONDS = 5.0
"""How long to wait, after a rank lost contact, for the rank that is the cause to say why."""


@contextmanager
def started_peers(context: RunContext, ranks: int, command: Sequence[str] = RANK) -> Iterator[Peers]:
    """The other ranks while the body, rank 0's job, runs; when it is left they are gone.

    Ranks that somebody else started (RANK is set) are only listened to. A rank that dies in the meantime sets
    ``context.lost``, and the body's end, whatever it is, becomes that error.

    Args:
        context: of rank 0.
        ranks: processes of the run, this one included.
        command: what the interpreter runs for each.

    Raises:
        WhetError: ``run.rank_died``, ``run.exchange_failed``, or a rank's own error.
    """
    peers = Peers(context, context.topology.world_size)
    if ranks > 1 and context.topology.alone:
        peers = Peers(context, ranks)
        peers.start(command)
    patience = 0.0
    try:
        yield peers
        patience = END_SECONDS
    except Stopped:
        if context.lost is not None:
            raise context.lost from None
        patience = END_SECONDS if context.stop_requested() != "now" else 0.0
        raise
    except BaseException as error:
        cause = peers.cause_of(error)
        if cause is not None:
            raise cause from error
        raise
    finally:
        peers.end(patience)


class Peers:
    """The ranks 1 to ``ranks`` - 1 of a run; none when it has one process."""

    def __init__(self, context: RunContext, ranks: int) -> None:
        self.context, self.ranks = context, ranks
        for rank in range(1, ranks):
            forget_report(context.dir, rank)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._watchers: list[threading.Thread] = []
        self._lifeline: Lifeline | None = None
        self._ending = threading.Event()

    def start(self, command: Sequence[str]) -> None:
        """Start them all, and be rank 0 from here on."""
        run, port = self.context.dir, _free_port()
        os.environ.update(Topology(0, 0, self.ranks).variables(LOOPBACK, port))
        self._lifeline = Lifeline()
        for rank in range(1, self.ranks):
            log = private_file(rank_log(run, rank), os.O_WRONLY | os.O_APPEND)
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", *command, str(run.path), "--lifeline", str(self._lifeline.reader)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[self._lifeline.reader],
                    env=environment() | Topology(rank, rank, self.ranks).variables(LOOPBACK, port),
                )
            finally:
                os.close(log)
            watcher = threading.Thread(target=self._watch, args=(rank, process), daemon=True)
            watcher.start()
            self._processes.append(process)
            self._watchers.append(watcher)

    def end(self, patience: float) -> None:
        """See them end by themselves for ``patience`` seconds, then make them."""
        self._ending.set()
        self._join(patience)
        if self._lifeline is not None:
            self._lifeline.cut()
        self._join(KILL_SECONDS)
        for process in self._processes:
            process.kill()
        self._join(KILL_SECONDS)

    def gone(self, patience: float) -> bool:
        """Whether all processes that this one started end by themselves within so many seconds."""
        self._join(patience)
        return all(process.returncode is not None for process in self._processes)

    def cause_of(self, error: BaseException) -> WhetError | None:
        """The error of another rank that explains rank 0's, or None when that stands for itself."""
        lost = lost_contact(error)
        if isinstance(error, WhetError) and not lost:  # all ranks may have come to the same one
            return None
        if self.context.lost is None and lost:
            deadline = time.monotonic() + CAUSE_SECONDS
            while (cause := self._reported()) is None and time.monotonic() < deadline:
                if self.context.lost is not None:
                    break
                time.sleep(0.05)
            return cause or self.context.lost or self._silence(error)
        return self.context.lost

    def _silence(self, error: BaseException) -> WhetError | None:
        if self.ranks == 1 or isinstance(error, WhetError):  # that one says itself what to do
            return None
        return silence_of(self.context.dir, self.ranks, error)

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        """In a thread of its own: rank 0's main thread may be stuck in an exchange with the dead rank."""
        code = process.wait()
        report = read_report(self.context.dir, rank)
        if code == 0 or self._ending.is_set() or (report is not None and report.status == "ended"):
            return
        if report is None:
            lost = death_of(self.context.dir, rank, code)
        else:
            lost = failure_of(rank, report)
            if report.consequence:
                if self._ending.wait(CAUSE_SECONDS):
                    return  # meanwhile the rank that it lost contact with was heard of
                lost = broken_exchange(self.context.dir, self.ranks, lost.message) or lost
        self.context.lost = self.context.lost or lost

    def _reported(self) -> WhetError | None:
        """The first rank's own error that is no consequence of another's."""
        for rank in range(1, self.ranks):
            report = read_report(self.context.dir, rank)
            if report is not None and report.status == "failed" and not report.consequence:
                return failure_of(rank, report)
        return None

    def _join(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for watcher in self._watchers:
            watcher.join(max(0.0, deadline - time.monotonic()))


class Lifeline:
    """A pipe whose write end is open in this process only: however it ends, its readers read the end."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        _lifelines.add(self)

    def cut(self) -> None:
        """Close both ends; a second call does nothing."""
        if self._writer >= 0:
            os.close(self._writer)
            os.close(self.reader)
            self.reader = self._writer = -1
        _lifelines.discard(self)


_lifelines: weakref.WeakSet[Lifeline] = weakref.WeakSet()


def _cut_in_child() -> None:
    """A forked child (a DataLoader worker) would keep the write end open after its parent's death."""
    for lifeline in list(_lifelines):
        lifeline.cut()


os.register_at_fork(after_in_child=_cut_in_child)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
