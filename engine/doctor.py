"""The machine's health, without a recipe: what `whet doctor` shows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from .checks import run_doctor
from .checks.env_flags import FlagReport, explain_flags
from .checks.environment import TESTED
from .findings import Finding
from .hardware import Machine, inspect_machine
from .redaction import Redactor
from .settings import settings
from .surroundings import Surroundings, inspect_surroundings


@dataclass(frozen=True)
class DoctorFacts:
    """What the checks look at when there is no plan."""

    machine: Machine
    surroundings: Surroundings


class DoctorReport(BaseModel):
    """What the machine has and what is wrong with it. Holds no secret."""

    model_config = ConfigDict(frozen=True)

    home: Path
    python: str
    machine: Machine
    surroundings: Surroundings
    tested: dict[str, str]
    """Package to the range whet was run with."""
    llama_cpp: str
    """One line of words."""
    findings: list[Finding]


def examine(progress: Callable[[str], None] | None = None) -> DoctorReport:
    """Look at the machine, slow looks included: they run in processes of their own, since they may crash."""
    machine = inspect_machine()
    return report_of(machine, inspect_surroundings(machine, slow=True, progress=progress))


def report_of(machine: Machine, surroundings: Surroundings) -> DoctorReport:
    """The report about facts that somebody gathered, its texts free of secrets."""
    clean = Redactor(hide_paths=False)
    return DoctorReport(
        home=settings().home,
        python=sys.version.split()[0],
        machine=machine,
        surroundings=Surroundings.model_validate(clean.value(surroundings.model_dump(mode="json"))),
        tested=TESTED,
        llama_cpp=_llama_words(surroundings),
        findings=[
            Finding.model_validate(clean.value(finding.model_dump(mode="json")))
            for finding in run_doctor(DoctorFacts(machine, surroundings))
        ],
    )


def explain_environment() -> list[FlagReport]:
    """Each environment flag that is set and matters, secrets left out."""
    from .checks.env_flags import seen_flags

    clean = Redactor(hide_paths=False)
    reports = explain_flags(seen_flags(), bool(inspect_machine().gpus))
    return [FlagReport.model_validate(clean.value(report.model_dump())) for report in reports]


def _llama_words(surroundings: Surroundings) -> str:
    smoke = surroundings.llama_cpp
    if smoke is None:
        return "not looked at"
    where = "with GPU offload" if smoke.gpu_offload else "on the CPU"
    return {
        "works": f"{smoke.version} {where}, ran a quantised model",
        "missing": "not installed",
        "unloadable": "does not load",
        "crashed": f"{smoke.version} crashes on a quantised model ({smoke.step}, {smoke.signal})",
        "failed": f"{smoke.version} fails on a quantised model ({smoke.step})",
    }[smoke.status]
