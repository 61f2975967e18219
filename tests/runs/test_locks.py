"""Locks as other processes see them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.fake_runs import SOURCE, until

from whet.engine.errors import WhetError
from whet.engine.runs import locks

HOLDER = """
import sys, time
from pathlib import Path
from whet.engine.runs import locks
lock = locks.hold(Path(sys.argv[1]))
lock.write_holder("the other one")
{more}
print("held", flush=True)
time.sleep(60)
"""


def hold_elsewhere(path: Path, more: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLDER.format(more=more), str(path)],
        env={"PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline().startswith("held")
    return process


def test_held_until_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not locks.is_held(path)
    with locks.hold(path) as lock:
        assert locks.is_held(path)
        assert locks.try_hold(path) is None
    assert not locks.is_held(path)
    lock.release()
    assert path.stat().st_mode & 0o777 == 0o600


def test_sigkill_frees_the_lock_of_another_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold_elsewhere(path) as process:
        assert locks.is_held(path)
        with pytest.raises(WhetError, match="the other one") as caught:
            locks.hold(path, patience=0.02)
        assert caught.value.code == "lock.held"
        process.kill()
    assert not locks.is_held(path)
    locks.hold(path).release()


def test_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    fork = (
        "import os\n"
        "child = os.fork()\n"
        "if child == 0:\n    time.sleep(60)\n    os._exit(0)\n"
        "Path(sys.argv[1] + '.child').write_text(str(child))"
    )
    with hold_elsewhere(path, fork) as process:
        child = int(Path(f"{path}.child").read_text())
        assert locks.is_held(path)
        process.kill()
        process.wait()
        try:
            os.kill(child, 0)  # the child lives on
            until(lambda: not locks.is_held(path), "a free lock", 5)
        finally:
            os.kill(child, signal.SIGKILL)


def test_child_of_a_multiprocessing_pool_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = locks.hold(path)
    ready, leave = multiprocessing.get_context("fork").Event(), multiprocessing.get_context("fork").Event()

    def child() -> None:
        ready.set()
        leave.wait(30)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    try:
        assert ready.wait(10)
        lock.release()
        assert not locks.is_held(path)
    finally:
        leave.set()
        process.join()


def test_adopted_lock_was_never_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = locks.hold(path)
    code = (
        "import sys\nfrom pathlib import Path\nfrom whet.engine.runs import locks\n"
        "lock = locks.adopt(Path(sys.argv[1]), int(sys.argv[2]))\n"
        "print('adopted', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(path), str(lock.fd)],
        env={"PYTHONPATH": str(SOURCE)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[lock.fd],
    ) as process:
        lock.release()
        assert locks.is_held(path)
        assert process.stdout is not None and process.stdout.readline() == b"adopted\n"
        assert locks.is_held(path)
    assert not locks.is_held(path)


def test_probing_readers_do_not_keep_a_taker_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    locks.hold(path).release()
    stop = threading.Event()
    wrong: list[bool] = []

    def probe() -> None:
        while not stop.is_set():
            wrong.append(locks.is_held(path))

    threads = [threading.Thread(target=probe) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: len(wrong) > 200, "200 probes")
    stop_seen = len(wrong)
    lock = locks.try_hold(path, patience=locks.PATIENCE)
    stop.set()
    for thread in threads:
        thread.join()
    assert lock is not None
    lock.release()
    assert not any(wrong[:stop_seen]), "probes saw each other as holders"
