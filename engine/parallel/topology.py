"""Which of a run's processes this one is, by the variables that torchrun, srun and operators set.

whet sets the same ones for the ranks it starts itself (:mod:`whet.engine.runs.peers`), so nothing else has to
know who started them. Light: no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import WhetError

if TYPE_CHECKING:
    from ..plan import Plan

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Topology:
    """This process among the run's: rank 0 writes the run, the others compute only."""

    rank: int = 0
    local_rank: int = 0
    """Among the ranks of this machine: the index of its GPU among the visible ones."""
    world_size: int = 1
    """Processes of the run, over all machines."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process to agree with."""
        return self.world_size == 1

    def variables(self, address: str, port: int) -> dict[str, str]:
        """What :func:`here` reads this topology from, and torch.distributed its rendezvous."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.world_size),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
        }


VARIABLES = tuple(Topology().variables(LOOPBACK, 0))
"""All that say which rank a process is, and where ranks meet."""


def here() -> Topology:
    """This process's place, from the environment; alone where nothing says otherwise.

    Raises WhetError ``ranks.contradictory`` for variables that are incomplete or do not fit each other.
    """
    said = os.environ
    size = _number(said, "WORLD_SIZE", 1)
    if size == 1 and "RANK" not in said and "LOCAL_RANK" not in said:
        return Topology()
    place = Topology(
        rank=_number(said, "RANK", 0 if size == 1 else None),
        local_rank=_number(said, "LOCAL_RANK", 0 if size == 1 else None),
        world_size=size,
    )
    if not 0 <= place.local_rank <= place.rank < place.world_size:
        raise _contradictory(said, "0 <= LOCAL_RANK <= RANK < WORLD_SIZE does not hold")
    if not place.alone:
        port = _number(said, "MASTER_PORT", None)
        if not 0 < port < 1 << 16:
            raise _contradictory(said, f"MASTER_PORT={port} is no port")
        if not said.get("MASTER_ADDR"):
            raise _contradictory(said, "MASTER_ADDR is missing")
    return place


def ranks_of(plan: Plan) -> int:
    """How many processes the plan gives its run; 1 for most."""
    return plan.resolved.ranks


def as_planned(place: Topology, ranks: int) -> None:
    """Each rank takes the share of a step that the plan gives it, so there must be as many as planned.

    Raises WhetError ``ranks.not_as_planned``.
    """
    if place.world_size != ranks:
        raise WhetError(
            "ranks.not_as_planned",
            f"{place.world_size} processes were started, and the plan shares the run among {ranks}.",
            f"Start {ranks}, or plan for {place.world_size}: hardware.gpus={place.world_size}.",
        )


def _number(said: Mapping[str, str], name: str, default: int | None) -> int:
    text = said.get(name, "").strip()
    if not text and default is not None:
        return default
    if not text.isdecimal():
        raise _contradictory(said, f"{name} is {'missing' if not text else 'no number'}")
    return int(text)


def _contradictory(said: Mapping[str, str], why: str) -> WhetError:
    seen = " ".join(f"{name}={said[name]}" for name in VARIABLES if name in said)
    return WhetError(
        "ranks.contradictory",
        f"The environment does not say which rank this is: {why} ({seen}).",
        f"Start all ranks through torchrun or srun, or unset {' '.join(VARIABLES)}: whet starts its own.",
    )
