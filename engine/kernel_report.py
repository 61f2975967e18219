"""The near end of `whet doctor --kernels`: starts the check and gathers its answers. Light."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Callable
from typing import IO, Literal

from pydantic import BaseModel, ConfigDict

from .errors import WhetError
from .processes import start

LOG_TAIL = 500
Direction = Literal["forward", "backward", "both"]


class KernelMachine(BaseModel):
    """What the kernels run on; rates in bytes/s and FLOP/s, None where nothing was timed."""

    model_config = ConfigDict(frozen=True)

    device: str
    dtype: str
    torch: str
    triton: str | None
    copy_bandwidth: float | None = None
    product_rate: float | None = None


class BackendChoice(BaseModel):
    """Which implementation of an operation will run here, and why."""

    model_config = ConfigDict(frozen=True)

    operation: str
    backend: str
    reason: str


class ParityResult(BaseModel):
    """One comparison with the float64 reference; right without ``problems``."""

    model_config = ConfigDict(frozen=True)

    kernel: str
    case: str
    dtype: str
    of: str | None = None
    error: float | None = None
    limit: float | None = None
    problems: list[str] = []


class SpeedResult(BaseModel):
    """One timed pass: ``rate`` in ``unit`` a second, ``share`` of the ceiling measured on this GPU."""

    model_config = ConfigDict(frozen=True)

    kernel: str
    case: str
    direction: Direction
    milliseconds: float | None = None
    rate: float | None = None
    unit: Literal["B", "FLOP", ""] = ""
    share: float | None = None
    plain_milliseconds: float | None = None
    problem: str = ""


class KernelReport(BaseModel):
    """Parity and speed of the kernels on this machine, and which back end each operation will use."""

    machine: KernelMachine
    backends: list[BackendChoice] = []
    parity: list[ParityResult] = []
    speeds: list[SpeedResult] = []
    notes: list[str] = []

    @property
    def wrong(self) -> list[ParityResult]:
        """Comparisons that failed."""
        return [result for result in self.parity if result.problems]


def check_kernels(interpret: bool = False, progress: Callable[[str], None] | None = None) -> KernelReport:
    """Check and time all kernels in a process of its own; ``progress`` is told what is being
    checked, as ``12 of 354: glu odd``.

    Args:
        interpret: on a machine without a GPU, check parity of small cases through Triton's interpreter.

    Raises:
        WhetError: ``kernels.crashed`` when the process ended before it knew the machine. A crash after that
            is a problem of the kernel being checked, in the report.
    """
    report: KernelReport | None = None
    now = ""
    with tempfile.TemporaryFile() as log:
        variables = {"TRITON_INTERPRET": "1"} if interpret else {}
        process = start("whet.engine.kernel_check", stderr=log, **variables)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                message = json.loads(line)
                if "machine" in message:
                    report = KernelReport.model_validate(message)
                elif "now" in message:
                    now = message["now"]
                    if progress is not None:
                        progress(f"{message['number']} of {message['of']}: {now}")
                elif report is not None:
                    _add(report, message)
            process.wait()
        finally:
            process.kill()  # nothing to kill unless the reader went away
            process.wait()
        if process.returncode and report is None:
            raise WhetError(
                "kernels.crashed",
                f"The check's process {ending(process.returncode)}: {_said(log)}",
                "WHET_KERNELS=reference trains without Triton meanwhile.",
            )
        assert report is not None
        if process.returncode:
            kernel, _, case = now.partition(" ")
            problem = f"the process {ending(process.returncode)}: {_said(log)}"
            report.parity.append(
                ParityResult(kernel=kernel, case=case, dtype=report.machine.dtype, problems=[problem])
            )
            report.notes.append("What comes after it was not checked.")
    return report


def _add(report: KernelReport, message: dict[str, object]) -> None:
    if "parity" in message:
        report.parity.append(ParityResult.model_validate(message["parity"]))
    elif "speed" in message:
        report.speeds.append(SpeedResult.model_validate(message["speed"]))


def ending(code: int) -> str:
    """How a process ended, as words after its name."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _said(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace").strip()[-LOG_TAIL:]
