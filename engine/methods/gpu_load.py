"""How busy a GPU is and who else computes on it, through NVML; nothing on other devices."""

from __future__ import annotations

import os
from contextlib import suppress

import psutil
import torch


class GpuLoad:
    """Asks the driver about one GPU, milliseconds a question.

    Args:
        device: what the run trains on.
    """

    def __init__(self, device: torch.device) -> None:
        self._handle = None
        self._known: list[int] = []
        self._others: tuple[str, ...] = ()
        if device.type == "cuda" and torch.version.cuda is not None:
            self._handle = _handle(device)

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
