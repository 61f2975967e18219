"""The machine in one screen."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from whet.engine.api import DoctorReport

from .findings import findings_block
from .units import size


def machine_report(report: DoctorReport) -> RenderableType:
    """GPUs, CPU, memory, disk, versions, llama.cpp, findings."""
    machine = report.machine
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for gpu in machine.gpus:
        capability = ".".join(map(str, gpu.capability))
        table.add_row(
            f"GPU {gpu.index}",
            f"{gpu.name}, {size(gpu.memory_free)} of {size(gpu.memory_total)} free, capability {capability}, "
            f"driver {gpu.driver}",
        )
    if not machine.gpus:
        table.add_row("GPU", f"none ({machine.gpu_note or 'no NVIDIA device'})")
    table.add_row("CPU", f"{machine.cpu_name}, {machine.cpu_count} usable cores")
    table.add_row("memory", f"{size(machine.ram_available)} of {size(machine.ram_total)} free")
    table.add_row("disk", f"{size(machine.disk_free)} free at {report.home}")
    table.add_row("llama.cpp", report.llama_cpp)
    table.add_row("versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items()))
    parts: list[RenderableType] = [table, ""]
    parts.append(
        findings_block(report.findings) if report.findings else Text("nothing wrong found", style="green")
    )
    return Group(*parts)
