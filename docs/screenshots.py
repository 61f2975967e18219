"""Pictures of the TUI for README and docs: `make screenshots`.

The real app is driven through its screens on a run of the demo and photographed as SVG, which browsers and
GitHub show as text of a terminal. Look at them after a change; nothing compares them.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

FOLDER = Path(__file__).parent / "screenshots"
SIZE = (120, 36)
Shot = Callable[[Any, Pilot[Any]], Awaitable[None]]


async def wait(pilot: Pilot[Any], probe: Callable[[], object], seconds: float = 120) -> None:
    """Let the app work until ``probe`` is true."""
    for _ in range(int(seconds / 0.05)):
        if probe():
            await pilot.pause(0.3)
            return
        await pilot.pause(0.05)
    raise TimeoutError(f"{probe} did not come about in {seconds} s")


def text_of(app: Any) -> str:
    """The screen as one text."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


async def home(app: Any, pilot: Pilot[Any]) -> None:
    await wait(pilot, lambda: app.screen.runs)


async def run(app: Any, pilot: Pilot[Any]) -> None:
    from whet.engine import api

    app.open("run", api.find("last").id)
    await wait(pilot, lambda: "Proof:" in text_of(app))


async def chat(app: Any, pilot: Pilot[Any]) -> None:
    from textual.widgets import Input

    app.open("chat", "last")
    await wait(pilot, lambda: app.screen.session is not None)
    app.screen.query_one("#say", Input).value = "How high should I set the rank?"
    await pilot.press("enter")
    await wait(pilot, lambda: app.screen.last and app.screen.answering is None)


async def export(app: Any, pilot: Pilot[Any]) -> None:
    app.open("export", "last")
    await wait(pilot, lambda: app.screen.choices)


async def new(app: Any, pilot: Pilot[Any]) -> None:
    app.open("new", {"data": "demo"})
    await wait(pilot, lambda: "GiB" in text_of(app) or "MiB" in text_of(app))
    await pilot.press("6")
    await pilot.pause(3)


async def ask(app: Any, pilot: Pilot[Any]) -> None:
    from textual.widgets import Input

    await pilot.press("slash")
    await wait(pilot, lambda: app.screen.query(Input))
    app.screen.query_one(Input).value = "why is my loss zero"
    await wait(pilot, lambda: app.screen.found)


async def doctor(app: Any, pilot: Pilot[Any]) -> None:
    app.open("doctor")
    await wait(pilot, lambda: app.screen.report is not None)


SHOTS: dict[str, Shot] = {
    "home": home, "run": run, "new-run": new, "chat": chat, "export": export, "ask": ask, "doctor": doctor,
}  # fmt: skip


async def take(name: str, shot: Shot) -> None:
    """One picture, of an app of its own."""
    from whet.tui.app import WhetApp

    app = WhetApp()
    async with app.run_test(size=SIZE) as pilot:
        await shot(app, pilot)
        picture = app.export_screenshot(title=f"whet: {name}")
        # Identifiers are random; the same screen shall give the same file.
        (FOLDER / f"{name}.svg").write_text(
            re.sub(r"terminal-\d+", f"terminal-{name}", picture), encoding="utf-8"
        )
        print(f"docs/screenshots/{name}.svg")


def main() -> None:
    """Train the demo in a home of its own, unless WHET_HOME names one with a finished run; photograph."""
    from whet.engine import api

    wanted = sys.argv[1:] or list(SHOTS)
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("WHET_HOME", home)
        if not api.runs():
            run_id = api.start(api.plan(api.recipe("demo")), started_by="tui")
            for _ in api.follow(run_id):
                pass
        FOLDER.mkdir(exist_ok=True)
        for name in wanted:
            asyncio.run(take(name, SHOTS[name]))


if __name__ == "__main__":
    main()
