"""The hub and downloads (E03): offline, refused, gated, stalled, or no room."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import WhetError
from ..findings import Finding, Fix
from .registry import HasSurroundings, PlanFacts, check

GIB, MIB = 2**30, 2**20
PARTIAL = 100 * MIB
LITTLE = 1 * GIB
BYTES = {"float32": 4, "float64": 8, "float8_e4m3fn": 1}
"""Of a weight by the checkpoint's type; two for all others."""
Kind = Literal["offline", "unreachable", "stalled", "disk", "gated", "no_token", "refused", "missing"]
CODES: dict[Kind, str] = {
    "offline": "model.not_found", "unreachable": "model.not_found", "stalled": "model.download_stalled",
    "disk": "model.disk_full",
}  # fmt: skip


@dataclass(frozen=True)
class Download:
    """A download that did not come to its end.

    Args:
        kind: why.
        name: hub id of the model.
        endpoint: of the hub, for links.
        offline_by: the flags that forbid the network.
        arrived: bytes that are here and stay.
        seconds: for how long nothing came.
        attempts: how often it was tried, the last time over plain HTTP with one worker.
        free: bytes left where downloads go.
        says: the hub's own words.
    """

    kind: Kind
    name: str
    endpoint: str = "https://huggingface.co"
    offline_by: tuple[str, ...] = ()
    arrived: int = 0
    seconds: float = 0.0
    attempts: int = 1
    free: int = 0
    says: str = ""


def download_finding(failed: Download) -> Finding:
    """E03 for a download that failed: the cause, and the way on for each."""
    evidence = {"model": failed.name, "says": failed.says} if failed.says else {"model": failed.name}
    return Finding(id="E03", severity="error", title=_cause(failed), evidence=evidence, fix=_way_on(failed))


def _cause(failed: Download) -> str:
    name, here = failed.name, f"{failed.arrived / 1e9:.2f} GB"
    absent = f"{name} is no local directory and not in the hub's cache, and "
    return {
        "offline": f"{absent}{' and '.join(failed.offline_by)} forbids the network.",
        "unreachable": f"{absent}the hub cannot be reached.",
        "stalled": f"The download of {name} stood still for {failed.seconds:.0f} s, {failed.attempts} times; "
        f"{here} are here.",
        "disk": f"The disk is full ({failed.free / 1e9:.2f} GB free); {here} of {name} are here.",
        "gated": f"{name} is gated, and this account has not been granted access.",
        "no_token": f"The hub does not show {name}: it is private or does not exist, and there is no token.",
        "refused": f"The hub does not accept the token for {name}.",
        "missing": f"The hub did not deliver {name}: {failed.says}",
    }[failed.kind]


def _way_on(failed: Download) -> Fix:
    local = "or give a local directory as model.name (`demo` needs no network)."
    again = f"HF_HUB_DISABLE_XET=1 HF_HUB_DOWNLOAD_TIMEOUT=60 hf download {failed.name} --max-workers 1"
    terms = f"Accept its terms at {failed.endpoint}/{failed.name}, then log in."
    text, command = {
        "offline": (f"Allow the network, {local}", f"unset {' '.join(failed.offline_by)}"),
        "unreachable": (f"Check the network and its proxy, {local}", f"curl -sI {failed.endpoint}"),
        "stalled": ("Start it again over plain HTTP: finished files are kept.", again),
        "disk": (
            "Free some space, or keep the hub's cache on a larger disk; finished files are kept.",
            "export HF_HOME=/path/on/a/larger/disk",
        ),
        "gated": (terms, "hf auth login"),
        "no_token": ("Check the name; a private model needs a login.", "hf auth login"),
        "refused": ("Log in anew, with a token that may read it.", "hf auth login"),
        "missing": ("Check the id and revision.", None),
    }[failed.kind]
    return Fix(text=text, command=command)


class DownloadFailed(WhetError):
    """A failed download as an error: its words are those of the ``finding``."""

    def __init__(self, failed: Download) -> None:
        self.failed, self.finding = failed, download_finding(failed)
        fix = self.finding.fix
        assert fix is not None
        hint = fix.text + (f" {fix.command}" if fix.command else "")
        super().__init__(CODES.get(failed.kind, "model.download"), self.finding.title, hint)

    def __reduce__(self) -> tuple[type[DownloadFailed], tuple[Download]]:  # type: ignore[override]
        return DownloadFailed, (self.failed,)


@check("environment", "E03")
def weights_can_come(facts: PlanFacts) -> Iterator[Finding]:
    """Weights that the worker will have to fetch: may it, and is there room?"""
    hub, name = facts.surroundings.hub, facts.recipe.model.name
    local = name == "demo" or Path(name).expanduser().is_dir()
    if hub is None or local or not facts.model.missing_weight_files:
        return
    if hub.offline_by:
        yield Finding(
            id="E03",
            severity="error",
            title=f"{name}: its weights are not in the hub's cache, and {' and '.join(hub.offline_by)} "
            "forbids the network.",
            evidence={"missing": facts.model.missing_weight_files[:3], "cache": str(hub.cache)},
            fix=Fix(
                text="Allow the network, or fetch them where there is one.",
                command=f"unset {' '.join(hub.offline_by)}",
            ),
        )
    needed = facts.model.parameters.total * BYTES.get(facts.model.dtype, 2)
    if needed > hub.cache_free:
        yield Finding(
            id="E03",
            severity="error",
            title=f"{name}: its weights take about {needed / GIB:.1f} GiB, the hub's cache has room for "
            f"{hub.cache_free / GIB:.1f}.",
            evidence={"cache": str(hub.cache), "needed_bytes": needed, "free_bytes": hub.cache_free},
            fix=Fix(
                text="Keep the hub's cache on a larger disk.",
                command="export HF_HOME=/path/on/a/larger/disk",
            ),
        )
    elif not hub.cache_writable:
        yield Finding(
            id="E03",
            severity="error",
            title=f"{name}: its weights cannot be written to {hub.cache}.",
            evidence={"cache": str(hub.cache)},
            fix=Fix(text="Name a folder that can be written.", command="export HF_HOME=~/.cache/huggingface"),
        )


@check("environment", "E03")
def hub_there(facts: HasSurroundings) -> Iterator[Finding]:
    """Is the hub reached, and does it know who asks? Being offline is a state, not a fault."""
    hub = facts.surroundings.hub
    if hub is None or hub.reach is None:
        return
    if not hub.reach.reachable:
        allowed = f"unset {' '.join(hub.offline_by)}" if hub.offline_by else None
        yield Finding(
            id="E03",
            severity="note",
            title=f"{hub.endpoint} is not reached ({hub.reach.why}): local and cached models and data work.",
            evidence={"offline_by": hub.offline_by} if hub.offline_by else {},
            fix=Fix(text="Nothing, unless something is to be downloaded.", command=allowed),
        )
    elif hub.reach.token_refused:
        yield Finding(
            id="E03",
            severity="warning",
            title=f"The hub does not accept the token from {hub.token_from}; private and gated models fail.",
            evidence={"token_from": hub.token_from, "also_in": hub.second_token},
            fix=Fix(
                text="The stored login may still be good." if hub.second_token else "Log in anew.",
                command=f"unset {hub.token_from}" if hub.second_token else "hf auth login",
            ),
        )


@check("environment", "E03")
def hub_cache(facts: HasSurroundings) -> Iterator[Finding]:
    """Leftovers of interrupted downloads."""
    hub = facts.surroundings.hub
    if hub is not None and hub.partial_bytes > PARTIAL:
        yield Finding(
            id="E03",
            severity="note",
            title=f"Interrupted downloads have left {hub.partial_bytes / GIB:.1f} GiB in {hub.cache}.",
            evidence={"files": hub.partial_files, "free_gib": round(hub.cache_free / GIB, 1)},
            fix=Fix(
                text="Remove those that are an hour old and no longer grow.",
                command=f"find '{hub.cache}' -name '*.incomplete' -mmin +60 -delete",
            ),
        )


CHECKS = (hub_cache,)
DOCTOR = (hub_there,)
"""Need answers that a plan does not wait for."""
