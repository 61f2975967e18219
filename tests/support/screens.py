"""What a person sees: a screen of the app as plain text, and its comparison with a committed one.

Text rather than pictures: a change can be read in a diff. WHET_SNAPSHOTS=write replaces what is committed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from textual.app import App
from textual.pilot import Pilot

SNAPSHOTS = Path(__file__).parents[1] / "tui" / "snapshots"
SIZES = ((80, 24), (120, 36), (200, 50))


def shown(app: App[Any]) -> str:
    """The screen now on top, a line each, without trailing spaces."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips) + "\n"


async def until(pilot: Pilot[Any], probe: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    """Let the app work until ``probe`` is true; threads take their own time on a busy machine."""
    deadline = time.monotonic() + seconds
    while not probe():
        assert time.monotonic() < deadline, f"{what} did not come about:\n{shown(pilot.app)}"
        await pilot.pause(0.01)


async def until_shown(pilot: Pilot[Any], words: str) -> None:
    """Let the app work until ``words`` stand on the screen."""
    await until(pilot, lambda: words in shown(pilot.app), repr(words))


async def settle(pilot: Pilot[Any]) -> None:
    """Let the work that is under way end, and that which it starts."""
    for _ in range(2):
        await pilot.pause()
        await pilot.app.workers.wait_for_complete()
        await pilot.pause()


async def pressed(pilot: Pilot[Any], *keys: str) -> str:
    """The screen after some keys."""
    await pilot.press(*keys)
    await settle(pilot)
    return shown(pilot.app)


async def same_as_committed(app: App[Any], name: str, seconds: float = 30.0) -> None:
    """Compare with ``tests/tui/snapshots/NAME-WIDTHxHEIGHT.txt``, once the screen has come to rest.

    A screen is laid out in several passes, and its figures come from threads: the app works until both are
    the same, or the time is over.
    """
    path = SNAPSHOTS / f"{name}-{app.size.width}x{app.size.height}.txt"
    if os.environ.get("WHET_SNAPSHOTS") == "write":
        await asyncio.sleep(1)
        path.parent.mkdir(exist_ok=True)
        path.write_text(shown(app), encoding="utf-8")
    assert path.exists(), f"{path} is missing: run with WHET_SNAPSHOTS=write, look at it, commit it"
    wanted = path.read_text(encoding="utf-8")
    deadline = time.monotonic() + seconds
    while (seen := shown(app)) != wanted and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert seen == wanted, f"{path.name} differs:\n{seen}"
