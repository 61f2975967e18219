"""Several GPUs: a wish that cannot be met, links that are slow, and NCCL's usual traps (E13)."""

from __future__ import annotations

from collections.abc import Iterator

from ..findings import Finding, Fix
from ..surroundings.facts import GPULink
from .registry import HasSurroundings, PlanFacts, check

MIB = 2**20
SHARED_MEMORY = 64 * MIB
"""Bytes that NCCL wants of /dev/shm for each GPU: its rings take tens of MiB, a container has 64 in all."""
OFF = {
    "NCCL_P2P_DISABLE": "GPUs then talk through host memory",
    "NCCL_SHM_DISABLE": "GPUs without a direct way then talk through the network's stack",
}
"""Switches of NCCL's that cost speed, and how."""


@check("environment", "E13")
def possible(facts: PlanFacts) -> Iterator[Finding]:
    """The GPUs that the recipe asks for cannot share this run."""
    problem = facts.ranks_problem
    if problem is not None:
        yield Finding(
            id="E13",
            severity="error",
            title=problem.title,
            evidence=problem.evidence,
            fix=Fix(text=problem.fix, patch=problem.patch, command=problem.command),
        )


@check("environment", "E13")
def planned_links(facts: PlanFacts) -> Iterator[Finding]:
    """What slows or stops the GPUs of a run that has several."""
    if facts.resolved.ranks > 1 and facts.resolved.device == "cuda":
        yield from _traps(facts)


@check("environment", "E13")
def links(facts: HasSurroundings) -> Iterator[Finding]:
    """The same of a machine with several GPUs, whatever runs there."""
    if len(facts.machine.gpus) > 1:
        yield from _traps(facts)


def _traps(facts: HasSurroundings) -> Iterator[Finding]:
    yield from _shared_memory(facts)
    yield from _switches(facts)
    yield from _indirect(facts)


def _shared_memory(facts: HasSurroundings) -> Iterator[Finding]:
    """Containers get 64 MiB unless they are told otherwise, and NCCL dies in the first reduction."""
    size, gpus = facts.surroundings.shared_memory, len(facts.machine.gpus)
    if size is None or size >= SHARED_MEMORY * gpus:
        return
    yield Finding(
        id="E13",
        severity="warning",
        title=f"/dev/shm holds {size / MIB:.0f} MiB; NCCL wants about {SHARED_MEMORY * gpus / MIB:.0f} for "
        f"{gpus} GPUs and fails where it finds less.",
        evidence={"shared_memory_mib": round(size / MIB), "gpus": gpus},
        fix=Fix(
            text="Start the container with more (docker: --shm-size=8g or --ipc=host; Kubernetes: an "
            "emptyDir with medium: Memory at /dev/shm).",
            command="mount -o remount,size=8G /dev/shm",
        ),
    )


def _switches(facts: HasSurroundings) -> Iterator[Finding]:
    for name, what in OFF.items():
        if facts.surroundings.flags.get(name, "0").strip() in ("", "0"):
            continue
        yield Finding(
            id="E13",
            severity="warning",
            title=f"{name}={facts.surroundings.flags[name]}: {what}, which is slow.",
            evidence={name: facts.surroundings.flags[name]},
            fix=Fix(text="Leave it out unless NCCL hangs without it.", command=f"unset {name}"),
        )


def _indirect(facts: HasSurroundings) -> Iterator[Finding]:
    """Pairs that reach each other through host memory alone; a note, since it costs speed only."""
    mine = {gpu.uuid for gpu in facts.machine.gpus}
    apart = [
        one for one in facts.surroundings.links if one.kind == "host" and {one.first, one.second} <= mine
    ]
    if not apart:
        return
    pairs = ", ".join(_pair(one) for one in apart[:3]) + (" and more" if len(apart) > 3 else "")
    yield Finding(
        id="E13",
        severity="note",
        title=f"GPUs {pairs} reach each other through host memory only: reductions are slower than planned.",
        evidence={"pairs": [f"{_pair(one)}: {one.path}" for one in apart]},
        fix=Fix(text="Choose GPUs of one switch or socket; `nvidia-smi topo -m` shows them."),
    )


def _pair(link: GPULink) -> str:
    return f"{link.indices[0]} and {link.indices[1]}"


CHECKS = (possible, planned_links)
DOCTOR = (links,)
