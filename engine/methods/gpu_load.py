"""How busy a GPU is and who else computes on it, through NVML; nothing on other devices.

A question to the driver takes milliseconds, as long as a small model's step: a thread waits for the answer.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

import psutil
import torch


class Load(NamedTuple):
    """One answer: :meth:`GpuLoad.busy` and :meth:`GpuLoad.others`."""

    busy: float | None
    others: tuple[str, ...]


class GpuLoad:
    """Asks the driver about one GPU.

    Args:
        device: what the run trains on.
    """

    def __init__(self, device: torch.device) -> None:
        self._handle = None
        self._asking: ThreadPoolExecutor | None = None
        self._question: Future[Load] | None = None
        self._known: list[int] = []
        self._others: tuple[str, ...] = ()
        if device.type == "cuda" and torch.version.cuda is not None:
            self._handle = _handle(device)

    def ask(self) -> None:
        """Let a thread ask, unless it is asking already; on other devices there is nobody to ask."""
        if self._handle is None or self._question is not None:
            return
        if self._asking is None:
            self._asking = ThreadPoolExecutor(1, "gpu-load")
        self._question = self._asking.submit(self._look)

    def answer(self) -> Load | None:
        """What was asked for last, once; None while it is not known."""
        if self._question is None or not self._question.done():
            return None
        question, self._question = self._question, None
        return question.result()

    def _look(self) -> Load:
        return Load(self.busy(), self.others())

    def busy(self) -> float | None:
        """Share of the last second in which a kernel ran; None where nobody can say (MIG, no driver)."""
        if self._handle is None:
            return None
        import pynvml

        try:
            return float(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100
        except pynvml.NVMLError:
            return None

    def others(self) -> tuple[str, ...]:
        """Other processes that hold memory on it for computing, as ``name (pid)``."""
        if self._handle is None:
            return ()
        import pynvml

        try:
            running = pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except pynvml.NVMLError:
            return ()
        # In a container the driver names processes of the host, this one among them, by numbers unknown here.
        known = [process.pid for process in running if psutil.pid_exists(process.pid)]
        if os.getpid() not in known or len(known) == 1:
            return ()
        if known == self._known:  # asking for the children reads every process of the machine
            return self._others
        mine = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
        found = []
        for pid in (one for one in known if one not in mine):
            with suppress(psutil.NoSuchProcess):  # just ended
                found.append(f"{psutil.Process(pid).name()} ({pid})")
        self._known, self._others = known, tuple(found)
        return self._others


def _handle(device: torch.device) -> object | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    except pynvml.NVMLError:
        return None
