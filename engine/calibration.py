"""What a GPU reaches: measured once, kept in the cache; typical figures by name until then. Light.

The measurement (:mod:`.calibration_process`) runs in a process of its own and takes some seconds on a GPU
that nothing else uses. It belongs to GPU, driver and torch together.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import WhetError
from .hardware import GPU, Machine
from .processes import start
from .runs.files import private_dir
from .settings import settings

FILE = "calibration.json"
LOG_TAIL = 500


class Ceilings(BaseModel):
    """Rates that the time model divides by, in 16-bit types; FLOP/s, bytes/s, tokens, seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    matmul: float = Field(description="Matrix products with their memory traffic taken out.")
    fp8: float | None = Field(None, description="The same in FP8; None where the GPU has none.")
    copy_rate: float = Field(description="Bytes read plus bytes written by a copy.")
    attention: float = Field(description="Forward and backward over documents of any length, long ones.")
    attention_ramp: float = Field(description="Tokens of a document at which half of that is reached.")
    attention_equal: float = Field(description="The same where all documents have one length.")
    attention_equal_ramp: float
    pcie: float = Field(description="Between pinned host memory and the device, the slower way.")
    layer_host: float = Field(description="Of the host: launching one layer forward and backward.")
    step_host: float = Field(description="Of the host: the rest of a step, which nothing runs beside.")
    measured: bool = False


def _typical(matmul: float, copy: float, fp8: float | None = None, *, cudnn: bool = False) -> Ceilings:
    """From two figures (TFLOP/s and TB/s); cuDNN's attention leads FlashAttention-2 from Hopper on."""
    general, equal = (0.43, 0.73) if cudnn else (0.6, 0.6)
    return Ceilings(
        matmul=matmul * 1e12,
        fp8=None if fp8 is None else fp8 * 1e12,
        copy_rate=copy * 1e12,
        attention=general * matmul * 1e12,
        attention_ramp=700,
        attention_equal=equal * matmul * 1e12,
        attention_equal_ramp=920 if cudnn else 700,
        pcie=45e9 if cudnn else 20e9,
        layer_host=6e-3,
        step_host=1e-2,
    )


TYPICAL = (
    ("GH200", _typical(780, 4.0, 1280, cudnn=True)),
    ("H200", _typical(780, 4.3, 1280, cudnn=True)),
    ("H100 PCIe", _typical(480, 1.8, 850, cudnn=True)),
    ("H100 NVL", _typical(600, 3.4, 1000, cudnn=True)),
    ("H100", _typical(720, 3.0, 1200, cudnn=True)),
    ("H800", _typical(720, 3.0, 1200, cudnn=True)),
    ("H20", _typical(135, 3.6, 270, cudnn=True)),
    ("B200", _typical(1600, 6.8, 3000, cudnn=True)),
    ("B300", _typical(1600, 6.8, 3000, cudnn=True)),
    ("RTX PRO 6000", _typical(380, 1.6, 700)),
    ("A100", _typical(260, 1.6)),
    ("A800", _typical(260, 1.6)),
    ("L40S", _typical(250, 0.75, 480)),
    ("L40", _typical(160, 0.75, 310)),
    ("L4", _typical(75, 0.26, 140)),
    ("A10G", _typical(65, 0.5)),
    ("A10", _typical(100, 0.5)),
    ("A40", _typical(120, 0.6)),
    ("A6000", _typical(120, 0.65)),
    ("5090", _typical(200, 1.6, 390)),
    ("4090", _typical(155, 0.9, 300)),
    ("3090", _typical(65, 0.85)),
    ("T4", _typical(35, 0.26)),
    ("V100", _typical(90, 0.8)),
)
"""By a part of the name, the first that fits: what is usually reached, not what the data sheet promises.

H200 and H100 were measured (2026-11, torch 2.11), the others follow their data sheets at the same share.
"""

BY_CAPABILITY = (
    ((10, 0), _typical(800, 4.0, 1500, cudnn=True)),
    ((9, 0), _typical(600, 3.0, 1000, cudnn=True)),
    ((8, 9), _typical(100, 0.5, 190)),
    ((8, 0), _typical(100, 0.8)),
    ((7, 0), _typical(40, 0.4)),
)
"""For names unknown: the least capable first entry that is not above the GPU's own."""


def typical(gpu: GPU) -> Ceilings:
    """Figures of GPUs of this name, or of this capability."""
    by_name = (ceilings for part, ceilings in TYPICAL if part in gpu.name)
    by_age = (ceilings for least, ceilings in BY_CAPABILITY if gpu.capability >= least)
    return next(by_name, None) or next(by_age, BY_CAPABILITY[-1][1])


def ceilings_of(machine: Machine) -> Ceilings | None:
    """Measured here, else typical; None without a GPU: nothing is known of a CPU's speed."""
    if not machine.gpus:
        return None
    return known_ceilings(machine) or typical(machine.gpus[0])


def known_ceilings(machine: Machine) -> Ceilings | None:
    """What was measured for this GPU, driver and torch; None before that."""
    if not machine.gpus:
        return None
    found = _kept(settings().cache / FILE).get(_key(machine))
    try:
        return None if found is None else Ceilings.model_validate(found)
    except ValidationError:  # E11 says so
        return None


def calibrate(machine: Machine) -> Ceilings:
    """Measure this machine's GPU now and remember it.

    Raises:
        WhetError: ``calibration.failed`` when the process ends without figures, e.g. for want of memory.
    """
    with tempfile.TemporaryFile() as log:
        process = start("whet.engine.calibration_process", stderr=log)
        said, _ = process.communicate()
        if process.returncode:
            log.seek(0)
            raise WhetError(
                "calibration.failed",
                f"The GPU could not be measured (code {process.returncode}): "
                f"{log.read().decode(errors='replace').strip()[-LOG_TAIL:]}",
                "Plans go on with typical figures of this GPU.",
            )
    ceilings = Ceilings.model_validate_json(said.splitlines()[-1])
    remember(machine, ceilings)
    return ceilings


def remember(machine: Machine, ceilings: Ceilings) -> None:
    """Keep a measurement for :func:`known_ceilings`."""
    path = settings().cache / FILE
    private_dir(path.parent)
    with open(path.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        everything = _kept(path)
        everything[_key(machine)] = ceilings.model_dump()
        fresh = Path(f"{path}.{os.getpid()}.tmp")
        fresh.write_text(json.dumps(everything, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        fresh.replace(path)


def _kept(path: Path) -> dict[str, Any]:
    """All measurements; none in a file that a full disk cut off, of which E11 tells."""
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _key(machine: Machine) -> str:
    gpu = machine.gpus[0]
    return f"{gpu.name}|{gpu.driver}|torch {machine.versions.get('torch', '?')}"
