"""Help opens at the place a person is, and the question box leads on."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from support.plan_inputs import write_chats
from support.recorded_runs import record, recorded_run
from support.screens import SIZES, same_as_committed, shown, until, until_shown
from textual.widgets import Input

from whet.engine import api
from whet.tui.app import WhetApp
from whet.tui.assistant.passages import Passage, passages
from whet.tui.screens.ask import AskCard, go
from whet.tui.screens.help import HelpScreen
from whet.tui.screens.new_run import NewRunScreen
from whet.tui.screens.new_run.review_step import ReviewStep
from whet.tui.screens.new_run.settings_step import SettingsStep
from whet.tui.screens.run import RunScreen, screen
from whet.tui.screens.run.panels import Findings


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
            await same_as_committed(app, "help")
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
        async with app.run_test(size=(80, 24)) as pilot:
            await pilot.press("slash")
            await pilot.pause()
            await pilot.press(*"loss")
            await until_shown(pilot, "enter goes there")
            await pilot.press("f2")
            await pilot.pause()
            assert "WHET_ASSISTANT" in shown(app)

    anyio.run(look)


def passage(kind: str, target: str) -> Passage:
    return next(one for one in passages() if (one.kind, one.target) == (kind, target))


def test_an_answer_leads_to_the_setting_the_step_or_the_finding_meant(tmp_path: Path) -> None:
    rows = write_chats(tmp_path / "rows.jsonl", 30)  # too few: a finding that blocks the start
    recipe = f"model: {{name: demo}}\ndata: {{train: {rows}}}\n"

    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=(100, 30)) as pilot:
            app.open("new", recipe)
            await pilot.pause()
            new = app.screen
            assert isinstance(new, NewRunScreen)
            await until(pilot, lambda: new.situation.plan is not None, "the plan")
            for key in ("training.learning_rate", "eval.every"):
                go(app, passage("setting", key))
                await pilot.pause()
                field = new.query_one(SettingsStep).field
                assert field is not None and field.key == key and app.focused is not None
            go(app, passage("setting", "model.name"))
            assert new.step == "model"
            app.open("help", "plan")
            await pilot.pause()
            go(app, passage("finding", "D16"))  # asked on the help over it
            await pilot.pause()
            found = new.query_one(ReviewStep).finding
            assert app.screen is new and found is not None and found.id == "D16"
            go(app, passage("finding", "X02"))  # not here: what it means
            await pilot.pause()
            assert isinstance(app.screen, HelpScreen) and "X02" in shown(app)

    anyio.run(look)


def test_an_answer_leads_to_a_screen_about_the_run_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "_plan", lambda run_id: None)
    run = recorded_run()
    run.write_state(status="finished")
    found = [api.Finding(id=id, severity="note", title="Seen.") for id in ("T01", "T08")]
    record(run, [api.FindingEvent(finding=one) for one in found], monkeypatch)

    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=(100, 30), notifications=True) as pilot:
            go(app, passage("screen", "run"))
            await until_shown(pilot, "choose one on Home first")
            await until_shown(pilot, run.id)
            go(app, passage("screen", "run"))
            await until(pilot, lambda: isinstance(app.screen, RunScreen), "the run")
            assert isinstance(app.screen, RunScreen) and app.screen.run_id == run.id
            go(app, passage("screen", "compare"))
            await until_shown(pilot, "Mark 2 to 6 runs")
            findings = app.screen.query_one(Findings)
            await until(pilot, lambda: findings.findings, "the findings")
            go(app, passage("finding", "T08"))
            await until(pilot, lambda: app.focused is findings, "the findings' panel")
            assert findings.chosen == found[1]

    anyio.run(look)
