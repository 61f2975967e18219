"""Kernels on this machine: who runs, whether it is right, how fast it is."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from whet.engine.api import KernelReport

from .facts import facts
from .text import plain

GOOD_SHARE = 0.8  # of the measured ceiling: what a kernel that only moves memory should reach


def kernel_report(report: KernelReport) -> RenderableType:
    """The machine, back ends with their reasons, parity, speeds beside plain torch, notes."""
    machine = report.machine
    rows: list[tuple[str, str | Text]] = [
        ("device", f"{machine.device}, torch {machine.torch}, triton {machine.triton or 'missing'}"),
        ("computes in", machine.dtype),
    ]
    if machine.copy_bandwidth and machine.product_rate:
        rows.append(("copy", f"{machine.copy_bandwidth / 1e9:,.0f} GB/s"))
        rows.append(("matrix product", f"{machine.product_rate / 1e12:,.0f} TFLOP/s"))
    rows += [("note", note) for note in report.notes]
    parts: list[RenderableType] = [facts(rows), Text(), _backends(report), Text(), _parity(report)]
    if report.speeds:
        parts += [Text(), _speeds(report)]
    return Group(*parts)


def _backends(report: KernelReport) -> Table:
    """Operations grouped by who runs them and why."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for choice in report.backends:
        groups[choice.backend, choice.reason].append(choice.operation)
    return facts(
        (backend, f"{', '.join(operations)}  ({reason})") for (backend, reason), operations in groups.items()
    )


def _parity(report: KernelReport) -> RenderableType:
    if not report.parity:
        return Text("parity was not checked; without a GPU: whet doctor --kernels --interpret")
    if not report.wrong:
        return Text(f"{len(report.parity)} comparisons with float64, all within their limits", style="green")
    lines = [Text(f"{len(report.wrong)} of {len(report.parity)} comparisons failed", style="red")]
    for result in report.wrong:
        name = f"{result.kernel} {result.case} {result.dtype}"
        lines += [Text(f"  {name}: {plain(problem)}") for problem in result.problems]
    lines.append(Text("WHET_KERNELS=reference trains without Triton meanwhile."))
    return Group(*lines)


def _speeds(report: KernelReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("kernel", "case", "pass"):
        table.add_column(name, no_wrap=True)
    for name in ("ms", "rate", "share", "torch ms", "times"):
        table.add_column(name, justify="right", no_wrap=True)
    for speed in report.speeds:
        words: tuple[str | Text, ...]
        if speed.milliseconds is None:
            words = (Text(plain(speed.problem, 60), style="red"), "", "", "", "")
        else:
            rate, share = "", Text()
            if speed.rate is not None and speed.share is not None:
                unit, scale = ("TFLOP/s", 1e12) if speed.unit == "FLOP" else ("GB/s", 1e9)
                rate = f"{speed.rate / scale:,.0f} {unit}"
                share = Text(f"{speed.share:.0%}", style="" if speed.share >= GOOD_SHARE else "yellow")
            beside = speed.plain_milliseconds
            times = (f"{beside:.3f}", f"{beside / speed.milliseconds:.2f}×") if beside else ("", "")
            words = (f"{speed.milliseconds:.3f}", rate, share, *times)
        table.add_row(speed.kernel, speed.case, speed.direction, *words)
    return table
