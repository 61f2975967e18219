"""`attach ssh://host/RUN`, `runs ssh://host`: the same on a run of another machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing

from whet.engine import api

from ..render.text import plain
from .common import EXIT_FAILED, EXIT_INTERRUPT, print_event, print_json, talk


def follow_remote(address: str, as_json: bool, after: int) -> int:
    """Show a remote run's events until it ends; returns its exit code. Ctrl-C only detaches."""
    from ..render.progress import Follower

    place = api.parse_address(address)
    console = talk()

    def tell(words: str) -> None:
        console.print(words, soft_wrap=True)

    end: api.RemoteEnd | None = None
    try:
        with closing(api.follow_remote(place, batch(), tell, after)) as said, Follower(console) as follower:
            for one in said:
                if as_json:
                    print_event(one)
                if isinstance(one, api.RemoteEnd):
                    end = one
                elif isinstance(one, api.RemoteStart):
                    place = place.named(one.id)
                elif not as_json:
                    follower.show(one)
    except KeyboardInterrupt:
        tell(f"\nDetached; {place.run} goes on.")
        tell(f"  back  whet attach {address}\n  stop  {place.typed('stop', place.run)}")
        return EXIT_INTERRUPT
    if end is None:
        return EXIT_FAILED
    if not as_json:
        _say_ended(place, end, tell)
    return end.exit


def _say_ended(place: api.RemoteRun, end: api.RemoteEnd, tell: Callable[[str], None]) -> None:
    """How it stands, and what to type next; the commands run on the other machine."""
    verdict = f", verdict: {plain(end.verdict)}" if end.verdict else ""
    tell(f"{plain(end.id)} on {place.host} is {end.status}{verdict}.")
    tell(f"  all of it  {place.typed('show', place.run)}")
    if end.status in ("stopped", "interrupted", "failed"):
        tell(f"  go on      {place.typed('resume', place.run, '--detach')}")


def list_remote(address: str, limit: int, as_json: bool) -> None:
    """The runs of another machine, newest first."""
    place = api.parse_address(address)
    found = api.remote_runs(place, batch(), limit)
    if as_json:
        print_json(found)
    elif not found:
        talk().print(f"No runs on {place.host} yet.")
    else:
        from ..render.runs import run_table
        from .common import print_data

        print_data(run_table(found))


def batch() -> bool:
    """Whether ssh must not ask: nobody is there to answer."""
    return not (sys.stdin.isatty() and sys.stderr.isatty())
