"""New run from the demo to a started run with Enter alone, edits, fixes, drafts; and how it looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.new_run_screens import OWN, App, flow, press, settle
from support.screens import SIZES, same_as_committed, shown
from textual.pilot import Pilot
from textual.widgets import Input

from whet.engine import api
from whet.tui import drafts
from whet.tui.screens.cards import ErrorCard, Question
from whet.tui.screens.new_run import NewRunScreen, screen
from whet.tui.screens.new_run.advice import STEPS
from whet.tui.screens.new_run.data_step import RowCard
from whet.tui.widgets.choice_card import ChoiceCard
from whet.tui.widgets.finding_card import FindingCard


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
def test_enter_alone_leads_from_the_demo_to_a_started_run(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, str]] = []

    def start(plan: api.Plan, started_by: str, remote_code: frozenset[str]) -> str:
        assert not remote_code
        started.append((plan.id, started_by))
        return "run-1"

    monkeypatch.setattr(api, "start", start)

    async def steps(app: App, pilot: Pilot[Any]) -> None:
        seen = []
        for _ in range(6):
            new = await press(pilot, "enter")
            seen.append(new.step)
        assert seen == ["data", "model", "template", "goal", "settings", "review"]
        assert new.situation.proposal is not None and "rank: 32" in new.situation.draft.text
        plan = new.situation.plan
        assert plan is not None
        await pilot.press("enter")
        await app.workers.wait_for_complete()
        await pilot.pause()
        assert started == [(plan.id, "tui")]
        assert app.opened == [("run", ("run-1",))]
        assert not any(isinstance(one, NewRunScreen) for one in app.screen_stack)
        assert app.kept.data == ["demo"] and app.kept.models == ["demo"]

    flow(steps, size=size)


def test_one_key_makes_the_finding_vanish_and_undo_brings_it_back(here: Path) -> None:
    lines = (here / "chats.jsonl").read_text().splitlines()
    lines[9] = '{"messages": ['
    (here / "chats.jsonl").write_text("\n".join(lines) + "\n")

    async def steps(app: App, pilot: Pilot[Any]) -> None:
        new = await settle(pilot)
        assert new.step == "review" and "D15 must be fixed" in shown(app)
        await press(pilot, "s")
        assert app.opened == [], "a blocked plan does not start"
        new = await press(pilot, "a")
        assert new.situation.plan is not None and new.situation.plan.blocked() == []
        assert "start training" in shown(app) and "bad_rows: skip" in new.situation.draft.text
        assert "# rows" in new.situation.draft.text
        new = await press(pilot, "u")
        assert new.situation.plan is not None
        assert [one.id for one in new.situation.plan.blocked()] == ["D15"]
        await press(pilot, "j", "enter")
        assert isinstance(app.screen, FindingCard)
        assert "+  bad_rows: skip" in shown(app) and "mended: D15" in shown(app)
        new = await press(pilot, "a")
        assert new.situation.plan is not None and new.situation.plan.blocked() == []
        await press(pilot, "1", "end", "enter")
        assert isinstance(app.screen, RowCard) and "▸     10" in shown(app)
        await press(pilot, "escape")

    flow(steps, OWN.format(data=here / "chats.jsonl"), (120, 36))


def test_the_meter_follows_arrows_and_what_is_typed(here: Path) -> None:
    async def steps(app: App, pilot: Pilot[Any]) -> None:
        new = await press(pilot, "5", *["down"] * 8)
        step = new.query_one("#settings", screen.SettingsStep)
        assert step.field is not None and step.field.key == "adapter.rank"
        before = new.situation.plan.memory.components["adapter"]  # type: ignore[union-attr]
        new = await press(pilot, "right", "right")
        assert new.situation.plan is not None and "rank: 64" in new.situation.draft.text
        assert new.situation.plan.memory.components["adapter"] == 4 * before
        await press(pilot, "enter")
        line = app.screen.query_one("#field-input", Input)
        assert line.has_focus and line.value == "64"
        new = await press(pilot, "backspace", "backspace", "0")
        assert "adapter.rank" in new.situation.draft.wrong
        assert "greater than or equal to 1" in shown(app), "the reason beside the field"
        assert line.value == "0" and "rank: 64" in new.situation.draft.text, "nothing typed is lost"
        await press(pilot, "s")
        assert line.value == "0s", "letters belong to the line while it has the focus"
        new = await press(pilot, "backspace", "backspace", "8", "enter")
        assert "rank: 8" in new.situation.draft.text and not new.situation.draft.wrong
        await press(pilot, "enter", "9")
        new = await press(pilot, "escape")
        assert "rank: 8" in new.situation.draft.text, "escape takes the edit back"

    flow(steps, OWN.format(data="demo"))


def test_choices_open_a_card_and_all_settings_a_longer_list() -> None:
    async def steps(app: App, pilot: Pilot[Any]) -> None:
        new = await press(pilot, "5", "down", "down", "enter")
        assert isinstance(app.screen, ChoiceCard) and "nf4" in shown(app)
        new = await press(pilot, "j", "enter")
        assert "precision: bf16" in new.situation.draft.text
        step = new.query_one("#settings", screen.SettingsStep)
        few = len(step.shown_fields)
        await press(pilot, "v")
        assert len(step.shown_fields) > few + 20

    flow(steps, OWN.format(data="demo"))


def test_a_goal_proposes_anew_and_undo_takes_it_back() -> None:
    async def steps(app: App, pilot: Pilot[Any]) -> None:
        new = await press(pilot, "4")
        assert "rank: 32" in new.situation.draft.text
        new = await press(pilot, "j", "enter")
        assert new.situation.draft.priority == "speed" and "rank: 16" in new.situation.draft.text
        assert new.step == "goal", "first look, then go on"
        new = await press(pilot, "u")
        assert new.situation.draft.priority == "quality" and "rank: 32" in new.situation.draft.text

    flow(steps, {"data": "demo"})


def test_a_limit_and_a_model_are_wishes_too() -> None:
    async def steps(app: App, pilot: Pilot[Any]) -> None:
        await press(pilot, "4", "j", "j", "j", "enter")
        await pilot.press(*"5", "enter")
        new = await settle(pilot)
        assert new.situation.draft.max_minutes == 5 and new.situation.proposal is not None
        assert new.situation.proposal.goal.max_minutes == 5
        new = await press(pilot, "2", "j", "enter")
        assert new.situation.problem is not None, "offline it cannot come"
        assert "offline" in shown(app) and "train" in new.situation.draft.text, "the recipe stays"
        new = await press(pilot, "x")
        assert new.situation.problem is None

    flow(steps, {"data": "demo"})


def test_the_hub_is_searched_and_offline_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = api.HubModel(
        name="org/Found-1B", parameters=1_000_000_000, downloads=5000, gated=True, licence="apache-2.0"
    )

    async def steps(app: App, pilot: Pilot[Any]) -> None:
        await press(pilot, "2", "i", *"qwen3-0.6", "enter")
        assert "Qwen/Qwen3-0.6B-Base" in shown(app) and "SmolLM" not in shown(app)
        assert "whet is offline" in shown(app), "the list here is searched all the same"
        monkeypatch.setattr(api, "search_models", lambda words: [found])
        await press(pilot, "i", *"found", "enter")
        assert "org/Found-1B" in shown(app) and "5k downloads in" in shown(app)

    flow(steps, {"data": "demo"}, (120, 36))


def test_the_xray_turns_rows_and_takes_another_template() -> None:
    async def steps(app: App, pilot: Pilot[Any]) -> None:
        await press(pilot, "3")
        assert "row 1 of 8" in shown(app) and "<|eot_id|>" in shown(app)
        await press(pilot, "right_square_bracket")
        assert "row 2 of 8" in shown(app)
        await press(pilot, "t")
        assert isinstance(app.screen, ChoiceCard)
        new = await press(pilot, "j", "enter")
        assert new.situation.draft.edited["data.template"] == "llama-3.1"

    flow(steps, {"data": "demo"})


def test_the_editor_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["model:\n  name: demo\n  nmae: x\n", OWN.format(data="demo").replace("16", "4")]
    given: list[str] = []

    def edit(app: object, text: str, name: str) -> tuple[str, str]:
        given.append(text)
        return answers.pop(0), ""

    monkeypatch.setattr(screen, "edit_text", edit)

    async def steps(app: App, pilot: Pilot[Any]) -> None:
        new = await press(pilot, "e")
        assert isinstance(app.screen, ErrorCard) and "nmae" in shown(app)
        assert "rank: 16" in new.situation.draft.text
        await press(pilot, "escape")
        new = await press(pilot, "e")
        assert given[1] == "model:\n  name: demo\n  nmae: x\n", "what was rejected is opened again"
        assert "rank: 4" in new.situation.draft.text and new.situation.plan is not None
        assert new.situation.plan.recipe.adapter.rank == 4

    flow(steps, OWN.format(data="demo"))


def test_leaving_keeps_edits_as_a_draft_and_starting_discards_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "start", lambda plan, by, remote_code: "run-2")

    async def leave(app: App, pilot: Pilot[Any]) -> None:
        await press(pilot, "5", *["down"] * 8, "right")
        await pilot.press("escape")
        await pilot.pause()
        assert drafts.names() == ["demo"] and "rank: 32" in drafts.path("demo").read_text()

    async def start(app: App, pilot: Pilot[Any]) -> None:
        new = await settle(pilot)
        assert new.situation.draft.name == "demo"
        await pilot.press("s")
        await app.workers.wait_for_complete()
        await pilot.pause()
        assert app.opened == [("run", ("run-2",))] and drafts.names() == []

    async def look(app: App, pilot: Pilot[Any]) -> None:
        await pilot.press("escape")
        await pilot.pause()
        assert drafts.names() == [], "who only looked leaves nothing behind"

    flow(leave, OWN.format(data="demo"))
    flow(start, drafts.path("demo"))
    flow(look, {"data": "demo"})


def test_code_that_a_model_brings_runs_by_a_persons_word_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[frozenset[str]] = []

    def start(plan: api.Plan, started_by: str, remote_code: frozenset[str]) -> str:
        allowed.append(remote_code)
        return "run-3"

    monkeypatch.setattr(api, "start", start)
    monkeypatch.setattr(api, "model_code", lambda plan: "org/model@0123")

    async def steps(app: App, pilot: Pilot[Any]) -> None:
        await press(pilot, "s")
        assert isinstance(app.screen, Question) and "org/model@0123" in shown(app)
        await press(pilot, "n")
        assert allowed == []
        await press(pilot, "s")
        await pilot.press("y")
        await app.workers.wait_for_complete()
        await pilot.pause()
        assert allowed == [frozenset({"org/model@0123"})] and app.opened == [("run", ("run-3",))]

    flow(steps, OWN.format(data="demo"))


def test_what_does_not_fit_is_made_to_fit_by_one_key() -> None:
    async def steps(app: App, pilot: Pilot[Any]) -> None:
        new = await settle(pilot)
        assert new.situation.plan is not None and not new.situation.plan.memory.fits
        assert "too much" in shown(app)
        new = await press(pilot, "m")
        assert new.situation.plan is not None and new.situation.plan.memory.fits
        assert "to fit" in next(iter(new.situation.draft.reasons.values()))

    flow(steps, OWN.format(data="demo").replace("16", "1024") + "training:\n  max_memory_gib: 0.9\n")


def test_mouse_alone_reaches_every_step() -> None:
    async def steps(app: App, pilot: Pilot[Any]) -> None:
        for step in ("model", "template", "goal", "settings", "review", "recipe", "data"):
            await pilot.click(f"#rail-{step}")
            new = await settle(pilot)
            assert new.step == step

    flow(steps, {"data": "demo"})


@pytest.mark.parametrize("size", SIZES)
def test_looks(size: tuple[int, int], here: Path) -> None:
    async def empty(app: App, pilot: Pilot[Any]) -> None:
        await same_as_committed(app, "new-run-empty")

    async def steps(app: App, pilot: Pilot[Any]) -> None:
        for number, step in enumerate(STEPS, 1):
            await press(pilot, str(number))
            await same_as_committed(app, f"new-run-{step}")

    flow(empty, None, size)
    flow(steps, {"data": "demo", "model": "demo"}, size)


def test_colours_are_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def steps(app: App, pilot: Pilot[Any]) -> None:
        await press(pilot, "3")
        styles = [
            segment.style
            for strip in app.screen._compositor.render_strips()
            for segment in strip
            if segment.style is not None and segment.text.strip() == "caps"
        ]
        assert styles and all(style.underline for style in styles), "what is learnt is underlined"

    flow(steps, {"data": "demo"})
