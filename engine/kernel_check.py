"""The far end of `whet doctor --kernels`: runs the kernels and writes what it finds as JSON lines.

First a whole `KernelReport` without results, then ``{"now": kernel and case}``, ``{"parity": ...}`` and
``{"speed": ...}`` as they are known, so that a kernel that takes the process down costs no other's results.
``TRITON_INTERPRET=1`` in the environment checks the smallest cases on the CPU.

On a GPU several such processes (``units`` as argument) first compare the kernels and compile what will be
timed, since nearly all of a cold run is compilation; then this one times them, alone on the GPU.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from threading import Lock
from typing import Any

import torch

from whet.kernels.backend import interpreting
from whet.kernels.parity import check as compare
from whet.kernels.parity import dtype_name
from whet.kernels.registry import SPECS
from whet.kernels.spec import Case, Inputs, KernelSpec
from whet.kernels.speed import Ceilings, call_once, directions_of, input_sets, measure, measure_ceilings

from .hardware import host_memory, usable_cores
from .kernel_backends import backends, compute_type, kernel_notes, runs_triton
from .kernel_check_units import Counted, Say, Unit, share
from .kernel_report import KernelMachine, KernelReport, ParityResult, SpeedResult

SECONDS_A_FIGURE = 0.05
INTERPRETED_CASES = 2
WORDS = 300  # characters of an error
MOST_PROCESSES = 16
BYTES_A_PROCESS = 2 << 30  # of the device's memory and of the host's, half of it libraries and their contexts


def main(what: str = "", most: str = "") -> None:
    """Check this machine, or do the units that come by standard input in ``most`` bytes of its GPU."""
    out, alone = os.fdopen(os.dup(1), "w", encoding="utf-8"), Lock()
    os.dup2(2, 1)  # compilers print; standard output is for JSON lines alone

    def say(message: dict[str, Any]) -> None:
        with alone:
            out.write(json.dumps(message) + "\n")
            out.flush()

    device = torch.device("cuda" if torch.cuda.is_available() and not interpreting() else "cpu")
    if what == "units":
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, int(most) / total))
        do_units(device, say)
    else:
        check(device, say)


def check(device: torch.device, say: Say) -> None:
    """Say which back ends run, then check and time the kernels where Triton runs."""
    dtype, here = compute_type(device), runs_triton(device)
    ceilings = measure_ceilings(device, dtype) if here else None
    machine = KernelMachine(
        device=torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU",
        dtype=dtype_name(dtype),
        torch=torch.__version__,
        triton=metadata.version("triton"),
        copy_bandwidth=ceilings.copy if ceilings else None,
        product_rate=ceilings.matmul if ceilings else None,
    )
    report = KernelReport(machine=machine, backends=backends(device), notes=kernel_notes(device))
    say(report.model_dump(mode="json"))
    timed = [(spec, case) for spec in SPECS.values() for case in spec.timed] if ceilings is not None else []
    if device.type == "cuda" and here:
        units = in_order([*(Unit("compile", spec.name, case.name) for spec, case in timed), *parity_units()])
        say = Counted(say, len(units) + len(timed))
        processes, most = _processes(device)
        lost = share(units, processes, most, say)
        timed = [(spec, case) for spec, case in timed if Unit("compile", spec.name, case.name) not in lost]
    elif here or interpreting():
        units = parity_units()
        say = Counted(say, len(units) + len(timed))
        for unit in units:
            do(unit, device, say)
    for spec, case in timed:
        say({"now": f"{spec.name} {case.name}"})
        assert ceilings is not None
        for result in _speeds(spec, case, device, ceilings):
            say({"speed": result.model_dump(mode="json")})


def parity_units() -> list[Unit]:
    """Every case of every kernel; the smallest in Triton's interpreter."""
    most = INTERPRETED_CASES if interpreting() else None
    return [Unit("parity", spec.name, case.name) for spec in SPECS.values() for case in spec.cases[:most]]


def in_order(units: list[Unit]) -> list[Unit]:
    """Those first whose kernels compile most: begun late, they would be waited for."""
    return sorted(units, key=lambda unit: -len(SPECS[unit.kernel].compilations))


def do_units(device: torch.device, say: Say) -> None:
    """Do units, one a line of standard input, until it ends."""
    for line in sys.stdin:
        do(Unit(*json.loads(line)), device, say)
        say({"finished": True})


def do(unit: Unit, device: torch.device, say: Say) -> None:
    """Compare a case with its reference in every type, or compile ahead what will be timed."""
    spec = SPECS[unit.kernel]
    cases = spec.cases if unit.kind == "parity" else spec.timed
    case = next(case for case in cases if case.name == unit.case)
    say({"now": f"{spec.name} {case.name}"})
    if unit.kind == "compile":
        _compile(spec, case, device)
        return
    for each in _types(spec, device):
        say({"parity": _parity(spec, case, each, device).model_dump(mode="json")})


def _compile(spec: KernelSpec, case: Case, device: torch.device) -> None:
    """What fails here fails again when it is timed, and is said then."""
    with suppress(Exception):
        call_once(spec, spec.inputs(case, _timed_type(spec, device), device, 0))
    _still_usable(device)


def _processes(device: torch.device) -> tuple[int, int]:
    """As many as there are cores for and memory, and the bytes that tensors of each may take: one that
    compiles what is timed leaves the others room to compare."""
    torch.cuda.empty_cache()  # of what was timed
    free = torch.cuda.mem_get_info(device)[0]
    memory = min(free, host_memory()[1])
    processes = max(1, min(MOST_PROCESSES, usable_cores(), memory // BYTES_A_PROCESS))
    return processes, max(free // processes - BYTES_A_PROCESS // 2, BYTES_A_PROCESS // 4)


def _timed_type(spec: KernelSpec, device: torch.device) -> torch.dtype:
    dtype = compute_type(device)
    return dtype if dtype in spec.dtypes else spec.dtypes[0]


def _types(spec: KernelSpec, device: torch.device) -> list[torch.dtype]:
    """The float types of the kernel that this device computes in."""
    without = torch.bfloat16 if compute_type(device) == torch.float16 else None
    return [dtype for dtype in spec.dtypes if dtype != without]


def _parity(spec: KernelSpec, case: Case, dtype: torch.dtype, device: torch.device) -> ParityResult:
    row: dict[str, Any] = {"kernel": spec.name, "case": case.name, "dtype": dtype_name(dtype)}
    try:
        outcome = compare(spec, case, dtype, device)
    except Exception as error:  # whatever it is, it is what the check is for
        _still_usable(device)
        return ParityResult(**row, problems=[_words(error)])
    problems = list(outcome.problems)
    if worst := outcome.worst:
        return ParityResult(**row, of=worst.of, error=worst.error, limit=worst.limit, problems=problems)
    return ParityResult(**row, problems=problems or ["nothing was compared"])


def _speeds(spec: KernelSpec, case: Case, device: torch.device, ceilings: Ceilings) -> Iterator[SpeedResult]:
    try:
        sets = input_sets(spec, case, _timed_type(spec, device), device)
    except Exception as error:
        _still_usable(device)
        yield SpeedResult(kernel=spec.name, case=case.name, direction="forward", problem=_words(error))
        return
    for direction in directions_of(spec):
        row = {"kernel": spec.name, "case": case.name, "direction": direction}
        yield SpeedResult.model_validate(row | _speed(spec, sets, direction, device, ceilings))


def _speed(
    spec: KernelSpec, sets: list[Inputs], direction: str, device: torch.device, ceilings: Ceilings
) -> dict[str, Any]:
    """Fields of the result: ours, then plain torch's time, which may not fit where ours does."""
    found: dict[str, Any] = {}
    try:
        ours = measure(spec, spec.operation, sets, direction, device, SECONDS_A_FIGURE)
    except Exception as error:
        _still_usable(device)
        return {"problem": _words(error)}
    found["milliseconds"] = ours.milliseconds
    if ours.unit:
        found |= {"rate": ours.rate, "unit": ours.unit, "share": ours.share(ceilings)}
    try:
        plain = measure(spec, spec.reference, sets, direction, device, SECONDS_A_FIGURE)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return found
    return found | {"plain_milliseconds": plain.milliseconds}


def _still_usable(device: torch.device) -> None:
    """End this process by the device's own error if it can no longer be used; free what failed."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:WORDS]


if __name__ == "__main__":
    main(*sys.argv[1:])
