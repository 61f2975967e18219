"""Events of a run on another machine, as they come; after a lost connection from the last one on."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ..errors import WhetError
from ..printable import printable
from ..runs.events import EVENT_VERSION, Event
from ..runs.state import RunSummary, Status
from .address import RemoteRun
from .ssh import Session, refuse_without_whet, session, unreachable

DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each new try; an event begins the count anew
SUMMARIES = TypeAdapter(list[RunSummary])


class RemoteStart(BaseModel):
    """Which run it is: what ``last`` or the beginning of an id stood for."""

    model_config = ConfigDict(frozen=True)

    type: Literal["run"] = "run"
    id: str
    path: str


class RemoteEnd(BaseModel):
    """How the run stands when its worker is gone, and with which code whet would exit there."""

    model_config = ConfigDict(frozen=True)

    type: Literal["end"] = "end"
    id: str
    status: Status
    verdict: str | None = None
    exit: int


Said = RemoteStart | Event | RemoteEnd
SAID = TypeAdapter[Said](Said)


def follow(place: RemoteRun, batch: bool, tell: Callable[[str], None], after: int = 0) -> Generator[Said]:
    """The run's start, its events with a number above ``after``, and its end.

    A connection that was there and is lost is tried again after each of ``DELAYS``, without asking for
    anything; ``tell`` hears of it. Raises WhetError ``remote.unreachable`` when there was no connection,
    ``remote.lost`` when there is none any more, ``remote.no_whet``, ``remote.no_ssh``,
    ``remote.event_unknown``, and what the other side's whet refuses, such as ``run.unknown``.
    """
    seen = _Seen(place, after)
    while True:
        with session(seen.place, seen.words(), batch or seen.started) as opened:
            for document in opened.documents():
                said = _understood(place, document)
                if seen.news(said):
                    yield said
                if isinstance(said, RemoteEnd):
                    return
            _retry_or_raise(opened, seen, tell)


def runs(place: RemoteRun, batch: bool, limit: int) -> list[RunSummary]:
    """The newest runs over there. Raises WhetError as :func:`follow` does where there is no connection."""
    with session(place, ["runs", "--json", "--limit", str(limit)], batch) as opened:
        for listed in opened.documents():
            try:
                return SUMMARIES.validate_python(listed)
            except ValidationError as error:
                raise _newer(place, listed) from error
        code = opened.ended()
        refuse_without_whet(opened, code)
        raise unreachable(opened, code)


class _Seen:
    """How far a run has been seen, over any number of connections."""

    def __init__(self, place: RemoteRun, after: int) -> None:
        self.place = place
        self.after = after
        self.started = False
        self.failures = 0

    def words(self) -> list[str]:
        """What is asked for."""
        more = ["--after", str(self.after)] if self.after else []
        return ["attach", self.place.run, "--json", *more]

    def news(self, said: Said) -> bool:
        """Note what came; whether it is told to anyone."""
        if isinstance(said, RemoteStart):
            first, self.started = not self.started, True
            self.place = self.place.named(said.id)  # `last` may be another run by the next connection
            return first
        if not isinstance(said, RemoteEnd):
            self.after, self.failures = said.seq, 0
        return True


def _retry_or_raise(lost: Session, seen: _Seen, tell: Callable[[str], None]) -> None:
    """Wait before the next try; or say why there is none."""
    code = lost.ended()
    refuse_without_whet(lost, code)
    if not seen.started:
        raise unreachable(lost, code)
    host = seen.place.host
    if seen.failures == len(DELAYS):
        raise WhetError(
            "remote.lost",
            f"The connection to {host} is lost after event {seen.after}; {len(DELAYS)} new tries failed: "
            f"{lost.last_words() or f'ssh ended with {code}'}",
            "The run goes on over there; attach again when the connection is back.",
        )
    wait = DELAYS[seen.failures]
    seen.failures += 1
    tell(f"The connection to {host} is lost; try {seen.failures} of {len(DELAYS)} in {wait:g} s.")
    time.sleep(wait)


def _understood(place: RemoteRun, document: Any) -> Said:
    """What a line says. Raises WhetError ``remote.event_unknown``."""
    try:
        return SAID.validate_python(document)
    except ValidationError as error:
        raise _newer(place, document) from error


def _newer(place: RemoteRun, found: object) -> WhetError:
    version = found.get("v") if isinstance(found, dict) else None
    ours = f" (version {version}, this whet knows {EVENT_VERSION})" if version else ""
    return WhetError(
        "remote.event_unknown",
        f"{place.host} sends what this whet cannot read{ours}: {printable(repr(found))[:160]}",
        f"Its whet is probably newer. Update this one, or look there: {place.typed('attach', place.run)}",
    )
