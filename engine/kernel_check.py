"""The far end of `whet doctor --kernels`: runs the kernels and writes what it finds as JSON lines.

First a whole `KernelReport` without results, then ``{"now": kernel and case}``, ``{"parity": ...}`` and
``{"speed": ...}`` as they are known, so that a kernel that takes the process down costs no other's results.
``TRITON_INTERPRET=1`` in the environment checks the smallest cases on the CPU.

On a GPU parity is checked by several such processes, each with a share of the kernels (``2/8`` as argument):
nearly all of its time is compilation, ten minutes and more on one core.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from threading import Lock
from typing import Any

import torch

from whet.kernels.backend import interpreting
from whet.kernels.parity import check as compare
from whet.kernels.parity import dtype_name
from whet.kernels.registry import SPECS
from whet.kernels.spec import Case, Inputs, KernelSpec
from whet.kernels.speed import Ceilings, directions_of, input_sets, measure, measure_ceilings

from .kernel_backends import backends, compute_type, kernel_notes, runs_triton
from .kernel_report import KernelMachine, KernelReport, ParityResult, SpeedResult, ending
from .processes import start

Say = Callable[[dict[str, Any]], None]
SECONDS_A_FIGURE = 0.05
INTERPRETED_CASES = 2
WORDS = 300  # characters of an error
MOST_PROCESSES = 8


def main(share: str = "") -> None:
    """Check this machine, or only the parity of one share of the kernels."""
    out, alone = os.fdopen(os.dup(1), "w", encoding="utf-8"), Lock()
    os.dup2(2, 1)  # compilers print; standard output is for JSON lines alone

    def say(message: dict[str, Any]) -> None:
        with alone:
            out.write(json.dumps(message) + "\n")
            out.flush()

    device = torch.device("cuda" if torch.cuda.is_available() and not interpreting() else "cpu")
    if share:
        check_parity(kernels_of(share), device, say)
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
    if device.type == "cuda" and here:
        processes = min(MOST_PROCESSES, os.cpu_count() or 1)
        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(partial(relay_share, say=say), [f"{i}/{processes}" for i in range(processes)]))
    elif here or interpreting():
        check_parity(list(SPECS.values()), device, say)
    if ceilings is not None:
        for spec in SPECS.values():
            for case in spec.timed:
                say({"now": f"{spec.name} {case.name}"})
                for result in _speeds(spec, case, dtype, device, ceilings):
                    say({"speed": result.model_dump(mode="json")})


def kernels_of(share: str) -> list[KernelSpec]:
    """``2/8``: of eight shares, the third."""
    number, _, of = share.partition("/")
    return list(SPECS.values())[int(number) :: int(of)]


def check_parity(specs: list[KernelSpec], device: torch.device, say: Say) -> None:
    """Compare the kernels with their references; only the smallest cases in Triton's interpreter."""
    for spec in specs:
        for case in spec.cases[:INTERPRETED_CASES] if interpreting() else spec.cases:
            say({"now": f"{spec.name} {case.name}"})
            for each in _types(spec, device):
                say({"parity": _parity(spec, case, each, device).model_dump(mode="json")})


def relay_share(share: str, say: Say) -> None:
    """Check one share in a process of its own; that it ends early is a problem of the kernel at hand."""
    now = "its start"
    with start("whet.engine.kernel_check", share, stderr=2) as process:
        assert process.stdout is not None
        for line in process.stdout:
            message = json.loads(line)
            now = message.get("now", now)
            say(message)
    if process.returncode:
        kernel, _, case = now.partition(" ")
        problem = f"the process {ending(process.returncode)}; what came after it in its share was not checked"
        wrong = ParityResult(kernel=kernel, case=case, dtype="any", problems=[problem])
        say({"parity": wrong.model_dump(mode="json")})


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


def _speeds(
    spec: KernelSpec, case: Case, dtype: torch.dtype, device: torch.device, ceilings: Ceilings
) -> Iterator[SpeedResult]:
    dtype = dtype if dtype in spec.dtypes else spec.dtypes[0]
    try:
        sets = input_sets(spec, case, dtype, device)
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
