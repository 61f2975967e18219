"""Machines that cannot be had here: GPUs through a stand-in for NVML, a login of systemd's, flags."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from faults.harness import Looked
from support.plan_inputs import TESTED_VERSIONS

from whet.engine.checks import run_doctor
from whet.engine.doctor import DoctorFacts
from whet.engine.findings import Finding
from whet.engine.hardware import GPU, Machine
from whet.engine.surroundings.facts import Surroundings

GIB = 2**30
TRITON = "3.7.1"


@contextmanager
def environ(**changes: str | None) -> Iterator[None]:
    """This process's environment with changes; None unsets."""
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def after(command: str, environment: dict[str, str]) -> dict[str, str]:
    """The environment that a shell has after a fix's command."""
    script = f"{command}; env -0"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    pairs = (entry.partition("=") for entry in done.stdout.split("\0") if entry)
    shell = {"_", "SHLVL", "PWD", "OLDPWD"}
    return {name: value for name, _, value in pairs if name not in shell or name in environment}


def command_of(finding: Finding) -> str:
    assert finding.fix is not None and finding.fix.command is not None
    return finding.fix.command


def look_at(surroundings: Surroundings, machine: Machine) -> list[Finding]:
    """What `whet doctor` finds."""
    return run_doctor(DoctorFacts(machine, surroundings))


def seen(surroundings: Surroundings, machine: Machine, mend: Any = None) -> Looked:
    return Looked(look_at(surroundings, machine), mend)


def versions(**changes: str | None) -> dict[str, str]:
    """Packages as tested, with Triton."""
    found: dict[str, str | None] = {**TESTED_VERSIONS, "triton": TRITON, **changes}
    return {name: version for name, version in found.items() if version is not None}


@dataclass
class FakeGPU:
    """What NVML would answer of a GPU; milliwatts and bytes as there."""

    name: str = "NVIDIA H100 80GB HBM3"
    total: int = 80 * GIB
    free: int = 79 * GIB
    processes: list[tuple[int, int]] = field(default_factory=list)
    """Pid and bytes."""
    busy: int = 0
    slices: int | None = None
    """Slices of MIG; None: off."""
    uncorrected: int = 0
    rows: tuple[int, int, int, int] = (0, 0, 0, 0)
    limit: int = 700_000
    reasons: int = 0
    mode: int = 0
    nvlinks: int = 0
    """Connections; two GPUs that have some are joined by them."""
    socket: int = 0
    """GPUs of one socket reach each other over PCIe."""


@contextmanager
def nvml(*gpus: FakeGPU) -> Iterator[None]:
    """A driver with these GPUs, as the library that whet asks shows it."""
    module = ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def slice_of(one: FakeGPU, number: int) -> str:
        if one.slices is None or number >= one.slices:
            raise NVMLError("no slice there")
        return f"MIG-{gpus.index(one)}-{number}"

    def uuid(one: FakeGPU | str) -> str:
        return one if isinstance(one, str) else f"GPU-{gpus.index(one)}"

    def link_state(one: FakeGPU, link: int) -> int:
        if link >= one.nvlinks:
            raise NVMLError("no such link")
        return 1

    def reached(one: FakeGPU, other: FakeGPU, way: int) -> int:
        """NVML's 0 is yes. Way 2 asks for NVLink, the others for any direct way."""
        linked = one.nvlinks > 0 and other.nvlinks > 0
        return 0 if linked or (way != 2 and one.socket == other.socket) else 5

    module.__dict__.update(
        NVMLError=NVMLError,
        nvmlDeviceGetNvLinkState=link_state,
        nvmlDeviceGetP2PStatus=reached,
        nvmlDeviceGetTopologyCommonAncestor=lambda one, other: 30 if one.socket == other.socket else 50,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "580.65.06",
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda index: gpus[index],
        nvmlDeviceGetMemoryInfo=lambda one: SimpleNamespace(total=one.total, free=one.free),
        nvmlDeviceGetName=lambda one: one.name,
        nvmlDeviceGetUUID=uuid,
        nvmlDeviceGetCudaComputeCapability=lambda one: (9, 0),
        nvmlDeviceGetUtilizationRates=lambda one: SimpleNamespace(gpu=one.busy, memory=0),
        nvmlDeviceGetCurrentClocksEventReasons=lambda one: one.reasons,
        nvmlDeviceGetRemappedRows=lambda one: one.rows,
        nvmlDeviceGetEnforcedPowerLimit=lambda one: one.limit,
        nvmlDeviceGetPowerManagementDefaultLimit=lambda one: 700_000,
        nvmlDeviceGetMigMode=lambda one: (int(one.slices is not None),) * 2,
        nvmlDeviceGetMaxMigDeviceCount=lambda one: 7,
        nvmlDeviceGetMigDeviceHandleByIndex=slice_of,
        nvmlDeviceGetComputeRunningProcesses=lambda one: [
            SimpleNamespace(pid=pid, usedGpuMemory=memory) for pid, memory in one.processes
        ],
        nvmlDeviceGetTemperature=lambda one, sensor: 45,
        nvmlDeviceGetTotalEccErrors=lambda one, kind, counter: one.uncorrected,
        nvmlDeviceGetComputeMode=lambda one: one.mode,
    )
    before = sys.modules.get("pynvml")
    sys.modules["pynvml"] = module
    try:
        yield
    finally:
        if before is None:
            del sys.modules["pynvml"]
        else:
            sys.modules["pynvml"] = before


def gpu(capability: tuple[int, int] = (9, 0), driver: str = "580.65.06") -> GPU:
    return GPU(
        index=0, name="NVIDIA H100 80GB HBM3", uuid="GPU-0", memory_total=80 * GIB, memory_free=79 * GIB,
        capability=capability, driver=driver,
    )  # fmt: skip


def write_login(
    root: Path,
    *,
    scope: str = "session-3.scope",
    kills: str = "yes",
    default: str = "no",
    linger: str | None = None,
) -> Path:
    """The files by which a login of systemd's is known, as Debian and Fedora lay them out."""
    texts = {
        "usr/lib/systemd/logind.conf": f"[Login]\n#KillUserProcesses={default}\n#KillExcludeUsers=root\n",
        "etc/systemd/logind.conf.d/site.conf": f"[Login]\nKillUserProcesses={kills}\n" if kills else "",
        "proc/self/cgroup": f"0::/user.slice/user-1000.slice/{scope}\n",
        "proc/self/status": "Name:\tpython\nSigIgn:\t0000000001001000\n",
        "proc/self/mounts": "/dev/sda1 / ext4 rw 0 0\n",
    }
    for name, text in texts.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    lingering = root / "var/lib/systemd/linger"
    lingering.mkdir(parents=True, exist_ok=True)
    if linger is not None:
        (lingering / linger).touch()
    return root
