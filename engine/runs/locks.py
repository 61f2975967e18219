"""Locks by ``flock``: alive means the lock is held, whatever files say.

The kernel drops a lock when the last descriptor of its open file closes, so a SIGKILL frees it. Two traps
follow. A forked child (a DataLoader worker) inherits the descriptor and would keep the lock after its
parent's death, so children close theirs. And looking must not disturb: a probe takes a shared lock, so probes
never see each other, and who takes a lock for real allows for a probe's microseconds with ``patience``.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from pathlib import Path
from types import TracebackType

from ..errors import WhetError
from ..settings import settings
from .files import private_dir, private_file

PATIENCE = 0.5
"""Seconds that a taker allows for readers that are just probing."""


class Lock:
    """A held lock. Closing its descriptor releases it, unless another process was handed a copy."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        _held.add(self)

    def release(self) -> None:
        """Close this process's descriptor; a second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        _held.discard(self)

    def write_holder(self, text: str) -> None:
        """Leave a line in the lock file saying who holds it; see :func:`holder`."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, text.encode(), 0)

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _close_in_child() -> None:
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_close_in_child)


def try_hold(path: Path, patience: float = 0.0) -> Lock | None:
    """Take the exclusive lock on ``path``, or None when it stays taken for ``patience`` seconds.

    Raises WhetError ``lock.unsupported`` where the file system has no flock.
    """
    fd = private_file(path, os.O_RDWR)
    deadline = time.monotonic() + patience
    while not _flock(path, fd, fcntl.LOCK_EX | fcntl.LOCK_NB):
        if time.monotonic() >= deadline:
            os.close(fd)
            return None
        time.sleep(0.005)
    return Lock(path, fd)


def hold(path: Path, patience: float = PATIENCE) -> Lock:
    """Take the exclusive lock on ``path``. Raises WhetError ``lock.held`` when another process has it."""
    lock = try_hold(path, patience)
    if lock is None:
        raise WhetError("lock.held", f"{path} is locked by another process ({holder(path) or 'unnamed'}).")
    return lock


def adopt(path: Path, fd: int) -> Lock:
    """Own a lock whose open descriptor ``fd`` the launcher passed on: at no moment was it free."""
    os.set_inheritable(fd, False)
    return Lock(path, fd)


def is_held(path: Path) -> bool:
    """Whether some process holds the lock; leaves no trace. A missing file is a free lock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        free = _flock(path, fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if free:
            fcntl.flock(fd, fcntl.LOCK_UN)  # explicit: a child forked just now may share the descriptor
        return not free
    finally:
        os.close(fd)


def holder(path: Path) -> str:
    """What the last holder wrote about itself, empty when nothing."""
    return path.read_text().strip() if path.exists() else ""


def gpu_lock(name: str) -> Path:
    """The lock file of one GPU (its uuid, or index), shared by all runs under ``WHET_HOME``."""
    return private_dir(settings().home / "locks") / f"gpu-{name}.lock"


def _flock(path: Path, fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how)
    except BlockingIOError:
        return False
    except OSError as error:
        os.close(fd)
        raise WhetError(
            "lock.unsupported",
            f"Cannot lock {path}: {error.strerror}.",
            "Runs need a local disk with flock: set WHET_HOME to a folder on one.",
        ) from error
    return True
