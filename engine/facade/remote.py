"""Runs on other machines: followed and listed through plain ssh, by their address."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from ..remote.address import RemoteRun, is_remote, parse_address
from ..runs.state import RunSummary

if TYPE_CHECKING:
    from ..remote.following import Said

__all__ = ["RemoteRun", "follow_remote", "is_remote", "parse_address", "remote_runs"]


def follow_remote(
    place: RemoteRun, batch: bool, tell: Callable[[str], None], after: int = 0
) -> Generator[Said]:
    """The start, the events above number ``after`` and the end of a run on another machine, as they come.

    ``batch``: ssh must not ask for anything. A lost connection is tried again, and ``tell`` hears of it.
    Raises WhetError ``remote.unreachable``, ``remote.lost``, ``remote.no_whet``, ``remote.no_ssh``,
    ``remote.event_unknown``, and what the other side refuses.
    """
    from ..remote.following import follow

    return follow(place, batch, tell, after)


def remote_runs(place: RemoteRun, batch: bool, limit: int) -> list[RunSummary]:
    """The newest runs on another machine. Raises WhetError as :func:`follow_remote` does."""
    from ..remote.following import runs

    return runs(place, batch, limit)
