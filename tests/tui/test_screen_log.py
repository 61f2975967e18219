"""The log viewer: opens at the end of any log, reads upwards as it is read, finds what is far above."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.recorded_runs import recorded_run, write_log
from support.screens import SIZES, pressed, same_as_committed, settle, shown, until, until_shown
from textual.pilot import Pilot
from textual.widgets import Input

from whet.engine import api
from whet.engine.runs.store import RunDir
from whet.tui import log_window
from whet.tui.app import WhetApp
from whet.tui.log_window import LogWindow, nearest, newest, older_with, oldest
from whet.tui.screens.run.log import LogScreen, LogView

Do = Callable[[Pilot[None], LogScreen], Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setenv("WHET_HOME", str(tmp_path))
    return recorded_run()


def many(count: int) -> list[str]:
    return [f"line {number}" for number in range(count)]


def reader(run: RunDir) -> log_window.Read:
    return lambda lines, before: api.log(run.id, lines, before)


def test_pages_make_up_the_log(run: RunDir) -> None:
    write_log(run.log, many(3500))
    window, read = LogWindow(), reader(run)
    assert window.show_newest(newest(read)) and not window.show_newest(newest(read))
    assert window.lines == many(3500)[-log_window.PAGE :] and not window.at_top
    while not window.at_top:
        window.add_above([read(log_window.PAGE, window.start)])
    assert window.lines == many(3500)


def test_the_top_of_a_long_log_has_whole_lines_and_grows(run: RunDir) -> None:
    lines = [f"{number:06} {'x' * 90}" for number in range(2000)]
    write_log(run.log, lines)
    window, read = LogWindow(), reader(run)
    window.show_oldest(*oldest(read))
    assert window.lines == lines[: len(window.lines)] and 500 < len(window.lines) < 700
    assert window.at_top and not window.at_end
    window.show_oldest(*oldest(read, reach=1 << 20))
    assert window.lines == lines and window.at_end


def test_a_search_reads_no_further_than_it_must(run: RunDir) -> None:
    write_log(run.log, ["needle", *many(5000), "NEEDLE here", *many(2500)])
    pages = older_with(reader(run), run.log.stat().st_size, "needle")
    lines = [line for page in pages for line in page.lines]
    assert len(lines) == 3000 and "NEEDLE here" in lines
    above = older_with(reader(run), pages[0].start, "needle")
    assert above[0].lines[0] == "needle"
    assert older_with(reader(run), 0, "needle") == []


def test_the_nearest_match_above_and_below() -> None:
    lines = ["a", "B", "c", "b"]
    assert nearest(lines, "b", 3, -1) == 1 and nearest(lines, "b", 1, 1) == 3
    assert nearest(lines, "b", 1, -1) is None and nearest(lines, "b", 3, 1) is None


def opened(run: RunDir, do: Do, size: tuple[int, int] = (80, 24)) -> None:
    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=size) as pilot:
            screen = LogScreen(run.id)
            app.push_screen(screen)
            await settle(pilot)
            await do(pilot, screen)

    anyio.run(look)


@pytest.mark.parametrize("size", SIZES)
def test_it_opens_at_the_end_and_obeys_no_control_character(run: RunDir, size: tuple[int, int]) -> None:
    noisy = ["\x1b[32mINFO\x1b[0m [bold]not markup[/bold]", "tab\there", "x" * 500]
    write_log(run.log, [*many(40), *noisy, " 10%\r 20%\r 30%", "the last line"])

    async def do(pilot: Pilot[None], screen: LogScreen) -> None:
        await until_shown(pilot, "the last line")
        await same_as_committed(pilot.app, "log")
        said = shown(pilot.app)
        assert "[bold]not markup[/bold]" in said and "\x1b" not in said and "\r" not in said

    opened(run, do, size)


def test_it_follows_until_one_scrolls_up(run: RunDir) -> None:
    write_log(run.log, many(100))

    async def do(pilot: Pilot[None], screen: LogScreen) -> None:
        await until_shown(pilot, "line 99")
        assert "following" in shown(pilot.app)
        write_log(run.log, many(120))
        screen._look()
        await until_shown(pilot, "line 119")
        await pilot.press("k", "k")
        await until_shown(pilot, "not following")
        assert "line 119" not in shown(pilot.app)
        write_log(run.log, many(140))
        screen._look()
        await settle(pilot)
        assert "line 139" not in shown(pilot.app)
        await pilot.press("G")
        await until_shown(pilot, "line 139")
        assert "not following" not in shown(pilot.app)

    opened(run, do)


def test_scrolling_up_reads_on_and_stays_in_place(run: RunDir) -> None:
    write_log(run.log, many(2500))

    async def do(pilot: Pilot[None], screen: LogScreen) -> None:
        view = screen.query_one(LogView)
        await until_shown(pilot, "line 2499")
        view.scroll_to(y=0, animate=False)
        await until(pilot, lambda: len(screen.window.lines) == 2000, "reading on above")
        await until_shown(pilot, "line 1500\n")  # the line that was on top before
        await settle(pilot)
        assert "line 1500\n" in shown(pilot.app) and len(screen.window.lines) == 2000

    opened(run, do)


def test_the_first_lines_and_on_from_there(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_window, "TOP", 1000)
    write_log(run.log, many(3000))

    async def do(pilot: Pilot[None], screen: LogScreen) -> None:
        said = await pressed(pilot, "g")
        assert said.splitlines()[1].strip() == "line 0" and not screen.window.at_end
        screen.query_one(LogView).scroll_end(animate=False)
        await settle(pilot)
        assert screen.window.lines == many(len(screen.window.lines)) and len(screen.window.lines) > 150

    opened(run, do)


def test_search_goes_up_through_what_is_not_loaded(run: RunDir) -> None:
    write_log(run.log, ["an Error far above", *many(3000), "error below", *many(10)])

    async def do(pilot: Pilot[None], screen: LogScreen) -> None:
        await pressed(pilot, "slash")
        assert screen.query_one(Input).has_focus
        said = await pressed(pilot, *"error", "enter")
        assert (
            "error below" in said
            and screen.window.lines[screen.query_one(LogView).place or 0] == "error below"
        )
        said = await pressed(pilot, "n")
        assert "an Error far above" in said
        assert "error below" in await pressed(pilot, "N")
        await pressed(pilot, "n", "n")
        assert "No match above." in [one.message for one in pilot.app._notifications]
        await pressed(pilot, "escape")
        assert pilot.app.screen is not screen

    opened(run, do)


def test_an_empty_log_says_so(run: RunDir) -> None:
    async def do(pilot: Pilot[None], screen: LogScreen) -> None:
        assert "The worker has said nothing yet." in shown(pilot.app)

    opened(run, do)
