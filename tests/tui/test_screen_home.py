"""Home: useful at once, all runs whoever started them, advice that follows from what is there."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.plan_inputs import gpu, machine
from support.screens import SIZES, same_as_committed, shown, until, until_shown
from textual.pilot import Pilot

from whet.engine import api
from whet.tui import drafts, kept
from whet.tui.app import WhetApp
from whet.tui.home_advice import home_advice
from whet.tui.screens.cards import CopyCard
from whet.tui.screens.home import HomeScreen
from whet.tui.widgets.run_table import RunTable

GIB = 1 << 30
ERROR = {"code": "train.oom", "message": "Memory ran out.", "hint": "Less."}


def summary(id: str, status: str, ago: float = 60, **state: Any) -> api.RunSummary:
    values = {"created": time.time() - ago, "method": "sft", "started_by": "cli", **state}
    return api.RunSummary(id=id, path=f"/runs/{id}", status=status, state=api.RunState(**values))  # type: ignore[arg-type]


RUNS: list[tuple[str, str, float, dict[str, Any]]] = [
    ("chat-20261101-090000-aa11", "running", 200, {"step": 40, "total_steps": 300, "loss": 1.234}),
    ("chat-20261101-080000-bb22", "waiting", 4000, {"started_by": "mcp:claude-code"}),
    ("demo-20261031-200000-cc33", "finished", 50000, {"step": 60, "total_steps": 60, "loss": 0.0161}),
    ("demo-20261030-200000-dd44", "failed", 300000, {"step": 7, "total_steps": 60, "error": ERROR}),
]


def runs() -> list[api.RunSummary]:
    return [summary(id, status, ago, **state) for id, status, ago, state in RUNS]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHET_HOME", str(tmp_path))
    monkeypatch.setattr(api, "machine", lambda: machine(gpu()))
    monkeypatch.setattr(api, "hub_login", lambda: "logged in")
    return tmp_path


def see(size: tuple[int, int], look: Callable[[WhetApp, Pilot[None]], Awaitable[None]]) -> None:
    async def run() -> None:
        app = WhetApp()
        async with app.run_test(size=size, notifications=True) as pilot:
            await until_shown(pilot, "Test GPU")
            await until(
                pilot, lambda: not isinstance(app.screen, HomeScreen) or app.screen.runs is not None, "runs"
            )
            await pilot.pause()
            await look(app, pilot)

    anyio.run(run)


@pytest.mark.parametrize("size", SIZES)
def test_a_full_home(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "runs", runs)
    drafts.save("support-bot", "model: {name: demo}\n")
    kept.save(kept.Kept(data=["/data/chats.jsonl"], models=["Qwen/Qwen3-0.6B"]))

    async def look(app: WhetApp, pilot: Pilot[None]) -> None:
        await until_shown(pilot, "mcp:claude-code")  # columns find their widths when the app is idle
        await same_as_committed(app, "home")
        await pilot.press("j", "space", "j", "space")
        assert app.screen.query_one(RunTable).marked == [RUNS[1][0], RUNS[2][0]]
        await pilot.press("y")
        await pilot.pause()
        assert isinstance(app.screen, CopyCard)
        assert f"whet show {RUNS[2][0]}" in [text for _, _, text in app.screen.texts]

    see(size, look)


@pytest.mark.parametrize("size", SIZES)
def test_an_empty_home_says_where_to_begin(size: tuple[int, int]) -> None:
    async def look(app: WhetApp, pilot: Pilot[None]) -> None:
        await same_as_committed(app, "home-empty")
        await pilot.press("c")
        await until_shown(pilot, "There is no run yet")

    see(size, look)


def test_the_cursor_stays_on_its_run_when_others_come(monkeypatch: pytest.MonkeyPatch) -> None:
    now = runs()
    monkeypatch.setattr(api, "runs", lambda: list(now))

    async def look(app: WhetApp, pilot: Pilot[None]) -> None:
        table = app.screen.query_one(RunTable)
        await pilot.press("j", "j")
        assert table.chosen == RUNS[2][0]
        now.insert(0, summary("new-20261101-093000-ee55", "queued"))
        table.show(now)
        await pilot.pause()
        assert table.chosen == RUNS[2][0] and table.row_count == 5

    see((120, 36), look)


def test_chat_and_export_of_a_job_are_about_the_run_it_belongs_to(monkeypatch: pytest.MonkeyPatch) -> None:
    job = summary("export-demo-1", "finished", method="export", parent="demo-1", started_by="mcp:agent")
    monkeypatch.setattr(api, "runs", lambda: [job])

    async def look(app: WhetApp, pilot: Pilot[None]) -> None:
        opened: list[tuple[object, ...]] = []
        monkeypatch.setattr(app, "open", lambda *asked: opened.append(asked))
        await pilot.press("e", "c", "enter")
        await until(pilot, lambda: len(opened) == 3, "three screens")
        assert opened == [("export", "demo-1"), ("chat", "demo-1"), ("run", "export-demo-1")]

    see((80, 24), look)


def test_a_run_thrown_away_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(api, "runs", runs)

    def note(what: str, run: str) -> str:
        done.append(f"{what} {run}")
        return run

    monkeypatch.setattr(api, "trash", partial(note, "trash"))
    monkeypatch.setattr(api, "restore", partial(note, "restore"))

    async def look(app: WhetApp, pilot: Pilot[None]) -> None:
        home = app.screen
        assert isinstance(home, HomeScreen)
        await pilot.press("delete")
        await until(pilot, lambda: home.thrown == [RUNS[0][0]], "the run in the trash")
        await pilot.press("u")
        await until(pilot, lambda: len(done) == 2, "the run back")
        assert done == [f"trash {RUNS[0][0]}", f"restore {RUNS[0][0]}"]

    see((80, 24), look)


def test_the_engines_errors_are_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def broken() -> list[api.RunSummary]:
        looks.append(time.time())
        raise api.WhetError("run.unreadable", "state.json cannot be read.", "Remove the folder.")

    monkeypatch.setattr(api, "runs", broken)

    async def look(app: WhetApp, pilot: Pilot[None]) -> None:
        await until_shown(pilot, "run.unreadable")
        assert "Remove the folder." in shown(app)
        looked = len(looks)
        await pilot.press("escape")
        await until(pilot, lambda: len(looks) > looked + 1, "two more looks")
        assert isinstance(app.screen, HomeScreen), "the same error came back without being asked for"

    see((80, 24), look)


def test_advice_begins_with_what_is_urgent() -> None:
    full = machine(gpu()).model_copy(update={"disk_free": GIB})
    lines = home_advice(runs(), full, [])
    assert "disk" in lines[0].text and lines[0].severity == "warning"
    assert home_advice([summary("a", "failed", error=ERROR)], None, [])[0].severity == "error"
    assert "train.oom" in home_advice([summary("a", "failed", error=ERROR)], None, [])[0].text
    assert home_advice([], None, [])[0].key == "x" and home_advice([], None, [])[1].key == "n"
    assert home_advice([summary("a", "interrupted", step=5)], None, [])[0].key == "enter"


def test_what_is_kept_survives_an_older_file(home: Path) -> None:
    kept.kept_file().write_text('{"theme": "nord", "gone": 1}')
    assert kept.load() == kept.Kept(theme="nord")
    kept.kept_file().write_text("{broken")
    assert kept.load() == kept.Kept()
    mine = kept.Kept()
    for number in range(20):
        mine.remember("data", f"{number}.jsonl")
    mine.remember("data", "15.jsonl")
    assert mine.data[:2] == ["15.jsonl", "19.jsonl"] and len(mine.data) == kept.MOST
