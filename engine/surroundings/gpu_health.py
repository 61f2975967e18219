"""Who uses the GPUs, and how well they are, through NVML. Light: nothing without a driver."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..nvml import NoDriver, started_nvml
from ..runs import locks
from ..settings import settings
from .facts import GPUHealth, GPUProcess

SLOWED = {
    0x0000000000000008: "hardware slowdown",
    0x0000000000000020: "software thermal slowdown",
    0x0000000000000040: "hardware thermal slowdown",
    0x0000000000000080: "power brake",
}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons that a person can do something about."""
MODES = {0: "default", 1: "exclusive", 2: "prohibited", 3: "exclusive"}
VOLATILE, UNCORRECTED = 0, 1


def read_gpu_health(visible: list[str]) -> list[GPUHealth]:
    """Every GPU of this machine; ``visible`` are the UUIDs that CUDA_VISIBLE_DEVICES leaves."""
    try:
        with started_nvml() as nvml:
            return [_health(nvml, index, visible) for index in range(nvml.nvmlDeviceGetCount())]
    except NoDriver:
        return []  # the machine's own facts say so


def _health(nvml: Any, index: int, visible: list[str]) -> GPUHealth:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def ask(function: Callable[..., Any], *arguments: Any) -> Any:
        """None where this GPU or its driver does not answer the question."""
        try:
            return function(handle, *arguments)
        except nvml.NVMLError:
            return None

    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    uuid = nvml.nvmlDeviceGetUUID(handle)
    used = ask(nvml.nvmlDeviceGetUtilizationRates)
    reasons = ask(nvml.nvmlDeviceGetCurrentClocksEventReasons) or 0
    rows = ask(nvml.nvmlDeviceGetRemappedRows) or (0, 0, 0, 0)
    limit = ask(nvml.nvmlDeviceGetEnforcedPowerLimit)
    default = ask(nvml.nvmlDeviceGetPowerManagementDefaultLimit)
    mig = bool((ask(nvml.nvmlDeviceGetMigMode) or (0, 0))[0])
    return GPUHealth(
        index=index,
        uuid=uuid,
        name=nvml.nvmlDeviceGetName(handle),
        visible=uuid in visible,
        memory_total=memory.total,
        memory_free=memory.free,
        processes=[_process(one) for one in ask(nvml.nvmlDeviceGetComputeRunningProcesses) or []],
        holder=_holder(uuid),
        utilization=None if used is None else used.gpu,
        temperature=ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        mig=mig,
        slices=_slices(nvml, handle) if mig else [],
        ecc_uncorrected=ask(nvml.nvmlDeviceGetTotalEccErrors, UNCORRECTED, VOLATILE),
        rows_pending=bool(rows[2]),
        rows_failed=bool(rows[3]),
        power_limit=None if limit is None else limit / 1000,
        power_default=None if default is None else default / 1000,
        slowed_by=[words for bit, words in SLOWED.items() if reasons & bit],
        compute_mode=MODES[ask(nvml.nvmlDeviceGetComputeMode) or 0],
    )


def _slices(nvml: Any, handle: Any) -> list[str]:
    found = []
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            found.append(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)))
        except nvml.NVMLError:
            continue  # an empty place
    return found


def _process(entry: Any) -> GPUProcess:
    """Name and user as far as this user may see them: in a container, pids are often of outside."""
    import psutil

    memory = entry.usedGpuMemory
    try:
        process = psutil.Process(entry.pid)
        name, user = process.name(), process.username()
    except (psutil.Error, KeyError):  # gone, hidden, or a user id without a name
        name, user = "", ""
    own = "this process" if entry.pid == os.getpid() else name
    return GPUProcess(pid=entry.pid, name=own, user=user, memory=memory)


def _holder(uuid: str) -> str:
    path = settings().home / "locks" / f"gpu-{uuid}.lock"
    return locks.holder(path) or "a run" if locks.is_held(path) else ""
