"""Help opens at the place a person is, and the question box leads on."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from support.screens import SIZES, same_as_committed, shown
from textual.widgets import Input

from whet.tui.app import WhetApp
from whet.tui.screens.ask import AskCard
from whet.tui.screens.help import HelpScreen


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path))
    monkeypatch.delenv("WHET_ASSISTANT", raising=False)


@pytest.mark.parametrize("size", SIZES)
def test_the_guide_is_read_with_keys_alone(size: tuple[int, int]) -> None:
    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=size) as pilot:
            await pilot.press("question_mark")
            await pilot.pause()
            assert isinstance(app.screen, HelpScreen)
            same_as_committed(app, "help")
            await pilot.press("j")
            await pilot.pause()
            assert "A row is a conversation" in shown(app)
            await pilot.press("escape")
            await pilot.pause()
            assert not isinstance(app.screen, HelpScreen)

    anyio.run(look)


def test_a_question_opens_the_findings_page() -> None:
    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=(100, 30)) as pilot:
            await pilot.press("slash")
            await pilot.pause()
            assert isinstance(app.screen, AskCard)
            app.screen.query_one(Input).value = "loss is zero"
            await pilot.pause()
            found = [one.target for one in app.screen.found]
            await pilot.press("down", *("down",) * found.index("D01"), "enter")
            await pilot.pause()
            assert isinstance(app.screen, HelpScreen) and "D01: No answer is supervised" in shown(app)

    anyio.run(look)


def test_without_a_model_the_box_says_how_to_name_one() -> None:
    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=(100, 30)) as pilot:
            await pilot.press("slash")
            await pilot.pause()
            await pilot.press("x", "f2")
            await pilot.pause()
            assert "WHET_ASSISTANT" in shown(app)

    anyio.run(look)
