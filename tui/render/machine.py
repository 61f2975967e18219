"""The machine in one screen."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from whet.engine.api import DoctorReport

from .facts import facts
from .findings import findings_block
from .units import size


def machine_report(report: DoctorReport) -> RenderableType:
    """GPUs, CPU, memory, disk, versions, llama.cpp, findings."""
    machine = report.machine
    rows: list[tuple[str, str | Text]] = [
        (
            f"GPU {gpu.index}",
            f"{gpu.name}, {size(gpu.memory_free)} of {size(gpu.memory_total)} free, "
            f"capability {'.'.join(map(str, gpu.capability))}, driver {gpu.driver}",
        )
        for gpu in machine.gpus
    ]
    if not rows:
        rows.append(("GPU", f"none ({machine.gpu_note or 'no NVIDIA device'})"))
    rows += [
        ("CPU", f"{machine.cpu_name}, {machine.cpu_count} usable cores"),
        ("memory", f"{size(machine.ram_available)} of {size(machine.ram_total)} free"),
        ("disk", f"{size(machine.disk_free)} free at {report.home}"),
        ("llama.cpp", report.llama_cpp),
        ("versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items())),
    ]
    found = findings_block(report.findings) if report.findings else Text("nothing wrong found", style="green")
    return Group(facts(rows), Text(), found)
