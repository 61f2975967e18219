"""The GPU is measured once, after the first run on it, so that the next plan knows what it reaches."""

from __future__ import annotations

from ..calibration import calibrate, known_ceilings
from ..checks.environment import calibration_failed
from ..errors import WhetError
from ..hardware import inspect_machine
from ..runs.context import RunContext
from ..runs.events import FindingEvent, PhaseEvent


def measure_once(context: RunContext) -> None:
    """Calibrate the GPU that a run used, unless that was done before. A failure is a note, not an error."""
    machine = inspect_machine()
    if context.plan.resolved.device != "cuda" or not machine.gpus or known_ceilings(machine) is not None:
        return
    context.emit(PhaseEvent(phase="train", detail="measuring this GPU, once"))
    try:
        calibrate(machine)
    except WhetError as error:
        context.emit(FindingEvent(finding=calibration_failed(error)))
