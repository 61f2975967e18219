"""The Run screen of a run: opened, worked with keys, looked at until it says something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from support.recorded_runs import record, training
from support.screens import shown
from textual.pilot import Pilot

from whet.engine.findings import Finding, Fix
from whet.engine.runs.events import Event, FindingEvent
from whet.engine.runs.store import RunDir
from whet.tui.app import WhetApp
from whet.tui.screens.run import RunScreen

SPIKE = Finding(
    id="T02",
    severity="warning",
    title="The loss spiked at step 12.",
    evidence={"step": 12, "loss": 4.2},
    fix=Fix(text="Lower the learning rate.", patch={"training.learning_rate": 1e-4}),
)
LOOP = "step(context, 1)\ntrain_until_stopped(context)\nraise Stopped"
Do = Callable[[Pilot[None], RunScreen], Any]


def opened(run: RunDir, do: Do, size: tuple[int, int] = (80, 24), ascii: bool = False) -> None:
    """Open the screen of a run, let it read, and go on."""

    async def look() -> None:
        app = WhetApp()
        app.kept.ascii = ascii
        async with app.run_test(size=size) as pilot:
            app.open("run", run.id)
            await settle(pilot)
            await do(pilot, next(one for one in app.screen_stack if isinstance(one, RunScreen)))

    anyio.run(look)


async def settle(pilot: Pilot[None]) -> None:
    await pilot.pause()
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()
    await pilot.pause()


async def pressed(pilot: Pilot[None], *keys: str) -> str:
    await pilot.press(*keys)
    await settle(pilot)
    return shown(pilot.app)


async def seen_again(pilot: Pilot[None], opened: RunScreen, words: str) -> str:
    """Look until the screen says something: the worker is another process."""
    with anyio.fail_after(20):
        while words not in shown(pilot.app):
            opened.look_again()
            await settle(pilot)
            await anyio.sleep(0.02)
    return shown(pilot.app)


def told(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    said = training()
    said.insert(20, FindingEvent(finding=SPIKE))
    record(run, said, monkeypatch)
    return said
