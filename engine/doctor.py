"""The machine's health, without a recipe: what `whet doctor` shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from .checks.environment import version_findings
from .findings import Finding, Fix
from .hardware import Machine, inspect_machine
from .settings import settings

LOAD_LLAMA = (
    "import llama_cpp; llama_cpp.llama_backend_init(); print(llama_cpp.__version__, "
    "'with GPU offload' if llama_cpp.llama_supports_gpu_offload() else 'on the CPU')"
)


class DoctorReport(BaseModel):
    """What the machine has and what is wrong with it."""

    model_config = ConfigDict(frozen=True)

    home: Path
    machine: Machine
    llama_cpp: str
    findings: list[Finding]


def examine() -> DoctorReport:
    """Look at the machine; loads llama.cpp in a process of its own, since a bad build can crash."""
    machine = inspect_machine()
    findings = list(version_findings(machine))
    loaded = subprocess.run([sys.executable, "-P", "-c", LOAD_LLAMA], capture_output=True, text=True)
    if loaded.returncode:
        findings.append(
            Finding(
                id="X04",
                severity="error",
                title="llama.cpp does not load, so no GGUF can be written or proven.",
                evidence={"exit code": loaded.returncode, "says": loaded.stderr.strip()[-300:]},
                fix=Fix(text="Build it again, portably.", command="make clean setup"),
            )
        )
    return DoctorReport(
        home=settings().home,
        machine=machine,
        llama_cpp=loaded.stdout.strip() or "does not load",
        findings=findings,
    )
