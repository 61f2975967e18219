"""Compiled kernels: broken or dead entries (E04), and none yet for this GPU (E09)."""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote

from ..findings import Finding, Fix
from ..settings import TRUE_WORDS
from ..surroundings.facts import KernelCache
from .registry import HasSurroundings, check

MIB = 2**20
FEW = 8
"""Entries named one by one; more are purged with the whole folder, which only costs compiling again."""
SECONDS_A_KERNEL = 2
"""Of compiling one variant on a common host; H100 and H200 nodes took 1 to 3."""


@check("environment", "E04")
def broken(facts: HasSurroundings) -> Iterator[Finding]:
    """Entries cut off by a kill or a full disk: Triton finds and cannot load them."""
    for cache in facts.surroundings.caches:
        if cache.broken:
            first = next(iter(cache.broken.items()))
            yield Finding(
                id="E04",
                severity="warning",
                title=f"{len(cache.broken)} entries of {cache.name}'s cache are broken.",
                evidence={"cache": str(cache.path), "first": f"{first[0]}: {first[1]}"},
                fix=Fix(
                    text="Remove them; they are compiled again.", command=_purge(cache, list(cache.broken))
                ),
            )


@check("environment", "E04")
def foreign(facts: HasSurroundings) -> Iterator[Finding]:
    """Entries of other versions or GPUs, where they are the greater part: never used, only kept."""
    for cache in facts.surroundings.caches:
        dead = sum(cache.foreign.values())
        if dead > cache.usable:
            yield Finding(
                id="E04",
                severity="note",
                title=f"{dead} of {cache.entries} kernels in {cache.name}'s cache are stale: for "
                f"{', '.join(sorted(cache.foreign)[:3])}.",
                evidence={"cache": str(cache.path), "mib": round(cache.size / MIB), **cache.foreign},
                fix=Fix(text="Purge them for the space.", command=_purge(cache, cache.foreign_folders)),
            )


@check("environment", "E04")
def unwritable(facts: HasSurroundings) -> Iterator[Finding]:
    """A cache nobody can write to: each process compiles again, or fails."""
    for cache in facts.surroundings.caches:
        if cache.writable or (cache.name == "triton" and not facts.machine.gpus):
            continue
        variable = "TRITON_CACHE_DIR" if cache.name == "triton" else "TORCHINDUCTOR_CACHE_DIR"
        yield Finding(
            id="E04",
            severity="warning",
            title=f"{cache.name}'s cache {cache.path} cannot be written"
            + (f"; it belongs to {cache.owner}." if cache.owner else "."),
            evidence={"cache": str(cache.path), "owner": cache.owner},
            fix=Fix(
                text="Name a folder of your own.", command=f'export {variable}="$HOME/.cache/{cache.name}"'
            ),
        )


@check("environment", "E09")
def cold(facts: HasSurroundings) -> Iterator[Finding]:
    """No kernel compiled for this GPU and Triton yet: the first steps compile."""
    flags = facts.surroundings.flags
    if not facts.machine.gpus or flags.get("WHET_KERNELS") == "reference":
        return
    if flags.get("TRITON_ALWAYS_COMPILE", "").lower() in TRUE_WORDS:
        yield Finding(
            id="E09",
            severity="warning",
            title="TRITON_ALWAYS_COMPILE=1: every run compiles every kernel anew.",
            evidence={"TRITON_ALWAYS_COMPILE": flags["TRITON_ALWAYS_COMPILE"]},
            fix=Fix(text="Let the cache be used.", command="unset TRITON_ALWAYS_COMPILE"),
        )
        return
    for cache in facts.surroundings.caches:
        if cache.name != "triton" or cache.kernels or cache.more or not cache.known:
            continue
        remaining = cache.known - len(cache.kernels)
        yield Finding(
            id="E09",
            severity="note",
            title="The first steps are slow once: no kernel is compiled for this GPU and Triton yet.",
            evidence={
                "compiled": len(cache.kernels), "kernels": cache.known, "cache": str(cache.path),
                "at_most_minutes": round(remaining * SECONDS_A_KERNEL / 60, 1),
            },
            fix=Fix(text="Wait, or warm the cache beforehand.", command="whet doctor --kernels"),
        )  # fmt: skip


CHECKS = (broken, foreign, unwritable, cold)


def _purge(cache: KernelCache, folders: list[str]) -> str:
    return "rm -rf " + (
        " ".join(quote(folder) for folder in folders) if len(folders) <= FEW else quote(str(cache.path))
    )
