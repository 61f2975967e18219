"""What this machine has: GPUs through NVML (none without it), usable cores, memory, disk, package versions.

Nothing here imports torch; without a GPU the answer takes a few milliseconds.
"""

from __future__ import annotations

import os
import platform
import tempfile
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .nvml import NoDriver, started_nvml
from .settings import settings

PACKAGES = (
    "whet",
    "torch",
    "triton",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "llama-cpp-python",
    "gguf",
)
CGROUP = Path("/sys/fs/cgroup")
NVLINK, NVLINK_BLACKWELL = 25e9, 50e9
"""Bytes a second of one connection, one way: second to fourth generation, and the fifth."""
NVLINK_REACHED = 0.7
MOST_NVLINKS = 18


class GPU(BaseModel):
    """One NVIDIA GPU; memory in bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: int
    name: str
    uuid: str
    memory_total: int
    memory_free: int
    capability: tuple[int, int] = Field(description="Compute capability, e.g. (9, 0).")
    driver: str
    nvlinks: int = Field(default=0, description="Active NVLink connections to other GPUs or their switch.")

    @property
    def link_rate(self) -> float:
        """Bytes a second to another GPU over NVLink, about what a reduction reaches; 0 without it."""
        each = NVLINK_BLACKWELL if self.capability >= (10, 0) else NVLINK
        return self.nvlinks * each * NVLINK_REACHED


class Disk(BaseModel):
    """The filesystem that one of whet's folders lies on; several folders may share one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Literal["home", "hub", "temporary"]
    path: Path
    device: int = Field(description="The same number for the same filesystem.")
    free: int


class Machine(BaseModel):
    """What a plan needs to know about where it will run; bytes throughout."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpus: list[GPU]
    cpu_name: str
    cpu_count: int = Field(description="Cores this process may use: affinity and cgroup quota considered.")
    ram_total: int = Field(description="Physical memory, or the container's limit where that is lower.")
    ram_available: int
    disk_free: int = Field(description="On the filesystem of whet's home.")
    disks: list[Disk] = Field(
        default_factory=list, description="Where home, the hub's cache and temporary files lie."
    )
    versions: dict[str, str] = Field(description="Installed packages that matter; absent ones are missing.")
    cpu_ranks: int = Field(
        default=1, ge=1, description="Processes of a run where there is no GPU (WHET_CPU_RANKS)."
    )
    gpu_note: str = Field(default="", description="Why no GPU is seen although a driver may be there.")

    @property
    def device(self) -> str:
        """``cuda`` or ``cpu``."""
        return "cuda" if self.gpus else "cpu"

    @property
    def label(self) -> str:
        """What a measured speed belongs to."""
        return self.gpus[0].name if self.gpus else f"{self.cpu_name} x{self.cpu_count}"


def inspect_machine() -> Machine:
    """Look at this machine now. Works without a GPU, without NVML and without nvidia-ml-py."""
    gpus, note = _gpus()
    total, available = host_memory()
    return Machine(
        gpus=gpus,
        gpu_note=note,
        cpu_name=_cpu_name(),
        cpu_count=usable_cores(),
        cpu_ranks=settings().cpu_ranks,
        ram_total=total,
        ram_available=available,
        disk_free=free_disk(settings().home),
        disks=_disks(),
        versions=_versions(),
    )


def with_memory(machine: Machine, most: int) -> Machine:
    """The same machine with at most ``most`` bytes on each GPU, or of RAM where there is no GPU."""
    if not machine.gpus:
        total, free = min(machine.ram_total, most), min(machine.ram_available, most)
        return machine.model_copy(update={"ram_total": total, "ram_available": free})
    gpus = [
        gpu.model_copy(
            update={"memory_total": min(gpu.memory_total, most), "memory_free": min(gpu.memory_free, most)}
        )
        for gpu in machine.gpus
    ]
    return machine.model_copy(update={"gpus": gpus})


def supports_bf16(machine: Machine) -> bool:
    """Whether bf16 is a native compute type: capability 8.0 and later. CPUs emulate it, so they train in
    fp32."""
    return bool(machine.gpus) and all(gpu.capability >= (8, 0) for gpu in machine.gpus)


def supports_fp8(machine: Machine) -> bool:
    """Whether matrices are multiplied in FP8: capability 8.9 and later."""
    return bool(machine.gpus) and all(gpu.capability >= (8, 9) for gpu in machine.gpus)


def usable_cores() -> int:
    """Cores this process may keep busy: its affinity mask, capped by the container's CPU quota."""
    affinity = len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def free_disk(path: Path) -> int:
    """Bytes free for us where ``path`` is, or will be once it is created."""
    stat = os.statvfs(_existing(path))
    return stat.f_bavail * stat.f_frsize


def _existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())


def _disks() -> list[Disk]:
    """The filesystems a run writes to; a hub model's weights and temporary files may lie elsewhere."""
    from .surroundings.hub import hub_cache

    folders: dict[Literal["home", "hub", "temporary"], Path] = {
        "home": settings().home,
        "hub": hub_cache(),
        "temporary": Path(tempfile.gettempdir()),
    }
    return [
        Disk(folder=name, path=path, device=_existing(path).stat().st_dev, free=free_disk(path))
        for name, path in folders.items()
    ]


def _cpu_quota() -> float | None:
    """Cores of the cgroup's quota (v2, then v1), None without one."""
    fields = _read(CGROUP / "cpu.max").split()
    if len(fields) == 2 and fields[0] != "max":
        return int(fields[0]) / int(fields[1])
    quota = _read(CGROUP / "cpu/cpu.cfs_quota_us").strip()
    period = _read(CGROUP / "cpu/cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def host_memory() -> tuple[int, int]:
    """Total and available bytes; a container's limit counts where it is lower."""
    import psutil

    memory = psutil.virtual_memory()
    limit = _read(CGROUP / "memory.max").strip() or _read(CGROUP / "memory/memory.limit_in_bytes").strip()
    if not limit or limit == "max" or int(limit) >= memory.total:
        return memory.total, memory.available
    used = _read(CGROUP / "memory.current").strip() or _read(CGROUP / "memory/memory.usage_in_bytes").strip()
    free = int(limit) - int(used or 0)
    # The page cache counts as used in a cgroup but gives way, so inactive file pages are available.
    inactive = next(
        (
            int(line.split()[1])
            for line in _read(CGROUP / "memory.stat").splitlines()
            if "inactive_file" in line
        ),
        0,
    )
    return int(limit), max(0, min(memory.available, free + inactive))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


@cache
def _cpu_name() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _gpus() -> tuple[list[GPU], str]:
    """The GPUs this process may use (CUDA_VISIBLE_DEVICES applied), and why there are none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return [], "CUDA_VISIBLE_DEVICES hides all GPUs"
    try:
        with started_nvml() as nvml:
            driver = nvml.nvmlSystemGetDriverVersion()
            gpus = [_gpu(nvml, index, driver) for index in range(nvml.nvmlDeviceGetCount())]
    except NoDriver as reason:
        return [], str(reason)
    if visible is None:
        return gpus, ""
    chosen = _visible(gpus, visible)
    note = "" if chosen else f"CUDA_VISIBLE_DEVICES={visible} names no whole GPU (MIG slices are not known)"
    return chosen, note


def _gpu(nvml: Any, index: int, driver: str) -> GPU:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return GPU(
        index=index,
        name=nvml.nvmlDeviceGetName(handle),
        uuid=nvml.nvmlDeviceGetUUID(handle),
        memory_total=memory.total,
        memory_free=memory.free,
        capability=tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        driver=driver,
        nvlinks=_nvlinks(nvml, handle),
    )


def _nvlinks(nvml: Any, handle: Any) -> int:
    """Connections that are up; the first that the GPU does not have ends the count."""
    active = 0
    for link in range(MOST_NVLINKS):
        try:
            active += nvml.nvmlDeviceGetNvLinkState(handle, link)
        except nvml.NVMLError:
            break
    return active


def _visible(gpus: list[GPU], visible: str) -> list[GPU]:
    """CUDA's own rule: a list of indices or UUID prefixes; the first one that names nothing ends the list."""
    chosen: list[GPU] = []
    for entry in (part.strip() for part in visible.split(",")):
        match = [gpu for gpu in gpus if entry == str(gpu.index) or (entry and gpu.uuid.startswith(entry))]
        if not match:
            break
        chosen.append(match[0])
    return chosen
