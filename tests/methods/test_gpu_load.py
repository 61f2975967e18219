"""Who else computes on a GPU: processes that are not this one's own, looked up when they change."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from threading import Event
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest
import torch
from support.fake_runs import until

from whet.engine.methods.gpu_load import GpuLoad, Load


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that is no child of this one: its parent has ended."""
    code = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'input()'], "
        "stdin=0, stdout=-3, stderr=-3, start_new_session=True); print(child.pid)"
    )
    reader, writer = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=reader, capture_output=True, text=True, timeout=60
    )
    try:
        yield int(done.stdout)
    finally:
        os.close(writer)  # its input ends, and it with it
        os.close(reader)


def test_strangers_are_named_and_looked_up_once(stranger: int, monkeypatch: pytest.MonkeyPatch) -> None:
    computing, lookups = [os.getpid(), stranger], 0
    children = psutil.Process.children

    def counted(process: psutil.Process, recursive: bool = False) -> Any:
        nonlocal lookups
        lookups += 1
        return children(process, recursive=recursive)

    monkeypatch.setattr(psutil.Process, "children", counted)
    monkeypatch.setattr(
        pynvml,
        "nvmlDeviceGetComputeRunningProcesses",
        lambda _: [SimpleNamespace(pid=pid) for pid in computing],
    )
    load = GpuLoad(torch.device("cpu"))
    assert load.others() == () and lookups == 0  # not a GPU
    load._handle = object()
    for _ in range(3):
        (other,) = load.others()
        assert other.endswith(f"({stranger})") and lookups == 1
    computing.remove(stranger)
    assert load.others() == () and lookups == 1


def test_nobody_waits_for_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is told once; while a question is open there is no second one."""
    answered, asked = Event(), 0

    def utilization(_: object) -> SimpleNamespace:
        nonlocal asked
        asked += 1
        assert answered.wait(60)
        return SimpleNamespace(gpu=50)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", utilization)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda _: [])
    load = GpuLoad(torch.device("cpu"))
    load.ask()
    assert load.answer() is None and asked == 0  # not a GPU
    load._handle = object()
    load.ask()
    load.ask()
    assert load.answer() is None
    answered.set()
    assert until(load.answer, "the answer") == Load(0.5, ()) and asked == 1
    assert load.answer() is None
