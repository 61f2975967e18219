"""GPUs that are busy, hidden, sliced, failing or slowed (E07)."""

from __future__ import annotations

from collections.abc import Iterator

from ..findings import Finding, Fix
from ..surroundings.facts import GPUHealth
from .registry import HasSurroundings, check

GIB = 2**30
BUSY_PERCENT, BUSY_BYTES = 50, 2 * GIB
LOW_POWER = 0.7
"""Of the GPU's default limit; the usual economical setting is above."""


@check("environment", "E07")
def hidden(facts: HasSurroundings) -> Iterator[Finding]:
    """CUDA_VISIBLE_DEVICES names no GPU of this machine: a run would go to the CPU without a word."""
    gpus, asked = facts.surroundings.gpus, facts.surroundings.flags.get("CUDA_VISIBLE_DEVICES", "").strip()
    if not gpus or facts.machine.gpus or asked in ("", "-1"):
        return
    slices = [one for gpu in gpus for one in gpu.slices]
    sliced = asked.startswith("MIG-")
    known = asked in slices
    yield Finding(
        id="E07",
        severity="warning",
        title=f"CUDA_VISIBLE_DEVICES={asked} names "
        + ("a MIG slice, which whet does not plan for" if known else "no GPU of this machine")
        + ": a run would use the CPU.",
        evidence={"gpus": {gpu.index: f"{gpu.name} {gpu.uuid}" for gpu in gpus}, "slices": slices},
        fix=Fix(
            text="Name a whole GPU; MIG is switched off by `nvidia-smi -mig 0`."
            if sliced
            else "Name one of these.",
            command=f"export CUDA_VISIBLE_DEVICES={_best(gpus).uuid}",
        ),
    )


@check("environment", "E07")
def sliced(facts: HasSurroundings) -> Iterator[Finding]:
    """MIG is on: the whole GPU that NVML lists cannot be used as one."""
    for gpu in _mine(facts):
        if gpu.mig:
            yield Finding(
                id="E07",
                severity="warning",
                title=f"GPU {gpu.index} is divided by MIG: CUDA uses one slice, and plans count on the whole "
                "GPU.",
                evidence={"slices": gpu.slices, "memory_gib": round(gpu.memory_total / GIB, 1)},
                fix=Fix(
                    text="Switch MIG off while nothing runs there, or choose another GPU.",
                    command=f"sudo nvidia-smi -i {gpu.index} -mig 0",
                ),
            )


@check("environment", "E07")
def busy(facts: HasSurroundings) -> Iterator[Finding]:
    """Somebody else computes there. A whet run is no alarm: runs wait for each other."""
    mine = _mine(facts)
    for gpu in mine:
        others = [one for one in gpu.processes if one.name != "this process"]
        taken = sum(one.memory or 0 for one in others)
        heavy = (gpu.utilization or 0) >= BUSY_PERCENT or taken >= BUSY_BYTES
        if not others or not heavy:
            continue
        who = ", ".join(f"{one.name or 'a process'} (pid {one.pid}{_of(one.user)})" for one in others[:3])
        free = [one for one in mine if not one.processes and not one.holder and not one.mig]
        yield Finding(
            id="E07",
            severity="note" if gpu.holder else "warning",
            title=f"GPU {gpu.index} is used by {who}"
            + (f": whet run {gpu.holder}; a new run waits for it." if gpu.holder else "."),
            evidence={
                "utilization_percent": gpu.utilization, "taken_gib": round(taken / GIB, 1),
                "free_gib": round(gpu.memory_free / GIB, 1), "free_gpus": [one.index for one in free],
            },
            fix=Fix(
                text="Take the GPU that is free." if free else "Wait for it, or end it.",
                command=f"export CUDA_VISIBLE_DEVICES={free[0].uuid}" if free else None,
            ),
        )  # fmt: skip


@check("environment", "E07")
def failing(facts: HasSurroundings) -> Iterator[Finding]:
    """Memory errors that ECC could not correct, and rows that wait for a reset."""
    for gpu in _mine(facts):
        if not (gpu.ecc_uncorrected or gpu.rows_pending or gpu.rows_failed):
            continue
        yield Finding(
            id="E07",
            severity="error" if gpu.rows_failed else "warning",
            title=f"GPU {gpu.index} has memory errors"
            + (" that it can no longer repair." if gpu.rows_failed else "; results and runs are at risk."),
            evidence={
                "uncorrected": gpu.ecc_uncorrected, "rows_pending": gpu.rows_pending,
                "rows_failed": gpu.rows_failed,
            },
            fix=Fix(text="Have the card replaced, and use another GPU until then.")
            if gpu.rows_failed
            else Fix(text="Reset the GPU while nothing runs there.",
                     command=f"sudo nvidia-smi -i {gpu.index} --gpu-reset"),
        )  # fmt: skip


@check("environment", "E07")
def slowed(facts: HasSurroundings) -> Iterator[Finding]:
    """A power limit far below the card's own, or clocks held down by heat or a weak supply."""
    for gpu in _mine(facts):
        if gpu.power_limit and gpu.power_default and gpu.power_limit < LOW_POWER * gpu.power_default:
            yield Finding(
                id="E07",
                severity="warning",
                title=f"GPU {gpu.index} may draw {gpu.power_limit:.0f} W of its {gpu.power_default:.0f}: it "
                "computes slower than planned.",
                evidence={"limit_watts": gpu.power_limit, "default_watts": gpu.power_default},
                fix=Fix(
                    text="Set its own limit again, if the supply and cooling allow.",
                    command=f"sudo nvidia-smi -i {gpu.index} -pl {gpu.power_default:.0f}",
                ),
            )
        if gpu.slowed_by:
            yield Finding(
                id="E07",
                severity="warning",
                title=f"GPU {gpu.index} holds its clocks down: {', '.join(gpu.slowed_by)}.",
                evidence={"temperature_c": gpu.temperature, "reasons": gpu.slowed_by},
                fix=Fix(
                    text="Look at its cooling and power supply.",
                    command=f"nvidia-smi -i {gpu.index} -q -d PERFORMANCE,TEMPERATURE,POWER",
                ),
            )


@check("environment", "E07")
def closed(facts: HasSurroundings) -> Iterator[Finding]:
    """A compute mode that lets no process in, or only one that is there already."""
    for gpu in _mine(facts):
        others = [one for one in gpu.processes if one.name != "this process"]
        prohibited = gpu.compute_mode == "prohibited"
        if prohibited or (gpu.compute_mode == "exclusive" and others and not gpu.holder):
            yield Finding(
                id="E07",
                severity="error",
                title=f"GPU {gpu.index} admits no process (compute mode {gpu.compute_mode})."
                if prohibited
                else f"GPU {gpu.index} admits one process (compute mode exclusive), and pid {others[0].pid} "
                "is there.",
                evidence={"compute_mode": gpu.compute_mode, "pids": [one.pid for one in others]},
                fix=Fix(text="Open it for all.", command=f"sudo nvidia-smi -i {gpu.index} -c DEFAULT"),
            )


CHECKS = (hidden, sliced, busy, failing, slowed, closed)


def _mine(facts: HasSurroundings) -> list[GPUHealth]:
    return [gpu for gpu in facts.surroundings.gpus if gpu.visible]


def _best(gpus: list[GPUHealth]) -> GPUHealth:
    """The one with the most free memory among those nobody has divided or taken."""
    return max(gpus, key=lambda gpu: (not gpu.mig, not gpu.processes, gpu.memory_free))


def _of(user: str) -> str:
    return f" of {user}" if user else ""
