"""Looking: the machine, data, models, templates. Nothing here writes."""

from __future__ import annotations

from typing import Any, ClassVar

from whet.engine import api

from ..results import FoundOut, Result, call
from .toolsets import READS, Toolset

GIB = 1 << 30


class EnvResult(Result):
    """What the machine has."""

    gpus: list[dict[str, Any]]
    cpu: str
    memory_gib: float
    disk_free_gib: float
    versions: dict[str, str]
    active_runs: list[str]
    findings: list[FoundOut]


class InspectTools(Toolset):
    """Read-only tools about what is there before a run."""

    name: ClassVar[str] = "inspect"
    tools: ClassVar[dict[str, Any]] = {"env_inspect": READS}

    def env_inspect(self) -> EnvResult:
        """The machine: GPUs, memory, disk, versions, active runs, and what is wrong with it. Call it first."""
        report = api.doctor()
        machine = report.machine
        active = [run.id for run in api.runs() if run.status in ("queued", "waiting", "running")]
        gpus = [
            {
                "name": gpu.name,
                "memory_gib": round(gpu.memory_total / GIB, 1),
                "free_gib": round(gpu.memory_free / GIB, 1),
                "capability": ".".join(map(str, gpu.capability)),
            }
            for gpu in machine.gpus
        ]
        where = f"{len(gpus)} GPU(s): {gpus[0]['name']}" if gpus else "No GPU: training runs on the CPU"
        return EnvResult(
            summary=f"{where}; {machine.ram_available / GIB:.0f} GiB of memory and "
            f"{machine.disk_free / GIB:.0f} GiB of disk free; {len(report.findings)} finding(s).",
            next=[
                call("dataset_inspect", data="demo"),
                *(call("job_wait", run_id=run) for run in active[:1]),
                call("model_list"),
            ],
            warnings=[f"{one.id}: {one.title}" for one in report.findings if one.severity == "error"],
            gpus=gpus,
            cpu=f"{machine.cpu_name}, {machine.cpu_count} cores",
            memory_gib=round(machine.ram_total / GIB, 1),
            disk_free_gib=round(machine.disk_free / GIB, 1),
            versions=machine.versions,
            active_runs=active,
            findings=[FoundOut.of(one) for one in report.findings],
        )
