"""Rough ground: broken files, a home that cannot be written, many runs, strange names."""

from __future__ import annotations

import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.plan_inputs import gpu, machine
from support.recorded_runs import record, recorded_run, step, training
from support.screens import shown, until, until_shown
from textual.pilot import Pilot

from whet.engine import api
from whet.tui import drafts, kept
from whet.tui.app import WhetApp
from whet.tui.screens.home import HomeScreen
from whet.tui.screens.new_run import NewRunScreen
from whet.tui.screens.run import screen
from whet.tui.widgets.run_table import RunTable

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
        new = app.screen
        assert isinstance(new, NewRunScreen)
        await until(pilot, lambda: bool(new.situation.draft.text), "the recipe on the screen")
        new.put({"adapter.rank": 4})
        await pilot.press("q")
        assert [drafts.path(name).read_text() for name in drafts.names()] == [new.situation.draft.text]
        assert "rank: 4" in new.situation.draft.text

    see((80, 24), look)


def test_two_hundred_runs_with_strange_names_stay_where_one_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    strange = "日本語のモデル-🎉-\x1b[31mrot\x1b[0m-\u202eretni-" + "x" * 120
    now = [summary(f"run-{number:03}", started_by=strange) for number in range(198)]
    now += [summary(strange), summary("alive", "running", step=1, total_steps=9)]
    monkeypatch.setattr(api, "runs", lambda: list(now))

    async def look(app: WhetApp, pilot: Pilot[None]) -> None:
        await until_shown(pilot, "run-000")
        table = app.screen.query_one(RunTable)
        table.scroll_to(y=100, animate=False)
        await pilot.pause()
        now[-1] = summary("alive", "running", step=5, total_steps=9)
        table.show(now)
        await pilot.pause()
        assert table.scroll_y == 100 and table.get_row("alive")[3].plain == "5/9"
        table.move_cursor(row=198)
        await pilot.pause()
        seen = shown(app)
        assert "日本語" in seen and not {"\x1b", "\u202e"} & set(seen)

    see((80, 24), look)


def test_a_click_on_the_key_of_an_advice_presses_it() -> None:
    async def look(app: WhetApp, pilot: Pilot[None]) -> None:
        await until_shown(pilot, "Have a file of chats?")
        await pilot.click("#assistant", offset=(4, 1))
        await until(pilot, lambda: isinstance(app.screen, NewRunScreen), "a new run")

    see((80, 24), look)


def test_a_run_whose_directory_goes_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "_plan", lambda run_id: None)
    run = recorded_run()
    record(run, training(), monkeypatch)

    async def look(app: WhetApp, pilot: Pilot[None]) -> None:
        app.open("run", run.id)
        await until_shown(pilot, "held out")
        shutil.rmtree(run.path)
        app.screen.look_again()  # type: ignore[attr-defined]
        await until_shown(pilot, "run.unknown")
        await pilot.press("escape")
        await until_shown(pilot, "run.unknown: not read further")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, HomeScreen), "Home")

    see((120, 36), look)


def test_a_long_run_opens_and_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "_plan", lambda run_id: None)
    run = recorded_run()
    record(run, (step(number, 20_000) for number in range(1, 20_001)), monkeypatch)

    async def look(app: WhetApp, pilot: Pilot[None]) -> None:
        app.open("run", run.id)
        await until_shown(pilot, "20000/20000")

    see((80, 24), look)
