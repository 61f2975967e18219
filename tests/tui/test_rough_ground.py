"""Rough ground: broken files, a home that cannot be written, many runs, strange names."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.plan_inputs import gpu, machine
from support.screens import until, until_shown
from textual.pilot import Pilot

from whet.engine import api
from whet.tui import drafts, kept
from whet.tui.app import WhetApp
from whet.tui.screens.new_run import NewRunScreen

RECIPE = "model: {name: demo}\ndata: {train: demo}\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHET_HOME", str(tmp_path))
    monkeypatch.setattr(api, "machine", lambda: machine(gpu()))
    return tmp_path


def see(size: tuple[int, int], look: Callable[[WhetApp, Pilot[None]], Awaitable[None]]) -> None:
    async def run() -> None:
        app = WhetApp()
        async with app.run_test(size=size, notifications=True) as pilot:
            await look(app, pilot)

    anyio.run(run)


def summary(id: str, status: str = "finished", **state: Any) -> api.RunSummary:
    values = {"created": time.time() - 60, "method": "sft", "started_by": "cli", **state}
    return api.RunSummary(id=id, path=f"/runs/{id}", status=status, state=api.RunState(**values))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["[1]", "{broken", '"x"', "\xff", '{"keymap": [], "theme": 3, "data": [1]}'])
def test_a_broken_file_of_what_was_kept_does_no_harm(text: str) -> None:
    kept.kept_file().write_text(text, encoding="latin-1")
    assert kept.load() == kept.Kept()


def test_a_home_that_cannot_be_written_is_told_and_stops_nobody(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").write_text("in the way")
    monkeypatch.setenv("WHET_HOME", str(home / "file" / "home"))

    async def look(app: WhetApp, pilot: Pilot[None]) -> None:
        app.open("settings")
        await pilot.pause()
        await pilot.press("b")
        await until_shown(pilot, "Not kept for the next start")
        await pilot.press("escape")
        app.open("new", RECIPE)
        await until_shown(pilot, "The disk refused")  # the plan's cache lies there, too
        await pilot.press("escape", "w")
        await until_shown(pilot, "draft.not_written")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, NewRunScreen), "the screen below the card")

    see((120, 36), look)


def test_quitting_keeps_edits_as_a_draft_and_the_palette_keeps_a_theme() -> None:
    async def look(app: WhetApp, pilot: Pilot[None]) -> None:
        app.theme = "nord"
        await until(pilot, lambda: kept.load().theme == "nord", "the theme in the file")
        app.open("new", RECIPE)
        await pilot.pause()
        screen = app.screen
        assert isinstance(screen, NewRunScreen)
        screen.put({"adapter.rank": 4})
        await pilot.press("q")
        assert [drafts.path(name).read_text() for name in drafts.names()] == [screen.situation.draft.text]
        assert "rank: 4" in screen.situation.draft.text

    see((80, 24), look)
