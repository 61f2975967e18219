"""New run in an app of its own: opened, worked with keys, waited for until nothing is planned any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from textual.pilot import Pilot

from whet.tui.app import WhetApp
from whet.tui.screens.new_run import NewRunScreen

OWN = """model:
  name: demo
data:
  train: {data}   # rows
adapter:
  rank: 16
"""

FEW = (80, 24)


class App(WhetApp):
    """Notes what else it is asked to open."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[tuple[str, tuple[object, ...]]] = []

    def open(self, name: str, *arguments: object) -> None:
        if name == "new":
            super().open(name, *arguments)
        else:
            self.opened.append((name, arguments))


async def settle(pilot: Pilot[Any]) -> NewRunScreen:
    """Wait until nothing is planned or read any more."""
    app = pilot.app
    for _ in range(200):
        await pilot.pause()
        await app.workers.wait_for_complete()
        await pilot.pause()
        new = next(one for one in app.screen_stack if isinstance(one, NewRunScreen))
        if not new.situation.busy or new.situation.problem is not None:
            return new
        await asyncio.sleep(0)
    raise AssertionError("it plans for ever")


async def press(pilot: Pilot[Any], *keys: str) -> NewRunScreen:
    """Each key, with what follows from it; the cursor's keys are pressed in one go."""
    for key in keys:
        await pilot.press(key)
        if key not in ("down", "j"):
            await settle(pilot)
    return await settle(pilot)


def flow(steps: Callable[[App, Pilot[Any]], Any], source: object = None, size: tuple[int, int] = FEW) -> None:
    """Run ``steps`` in an app that shows New run."""

    async def body() -> None:
        app = App()
        async with app.run_test(size=size) as pilot:
            app.open("new", source)
            await pilot.pause()
            await settle(pilot)
            await steps(app, pilot)

    asyncio.run(body())
