"""New run begins with data: files found, paths typed, columns asked for, rows of other methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.new_run_screens import App, flow, press, settle
from support.screens import shown
from textual.pilot import Pilot

from whet.tui.widgets.finding_card import StepList


def test_a_file_is_found_previewed_and_chosen(here: Path) -> None:
    async def steps(app: App, pilot: Pilot[Any]) -> None:
        await press(pilot, "j", "j", "j")
        assert "What is 0 plus 1?" in shown(app), "rows of the file under the cursor"
        new = await press(pilot, "enter")
        assert new.situation.draft.data == str(here / "chats.jsonl")
        assert "186 usable, 0 bad" in shown(app)
        assert app.kept.folder == str(here)

    flow(steps)


def test_a_path_can_be_typed_and_a_wrong_one_says_what_is_near(here: Path) -> None:
    async def steps(app: App, pilot: Pilot[Any]) -> None:
        await pilot.press("i")
        await pilot.pause()
        await pilot.press(*"chat.jsonl", "enter")
        new = await settle(pilot)
        assert new.situation.problem is not None and "chats.jsonl" in new.situation.problem.hint
        assert "Did you mean" in shown(app)
        await pilot.press("i")
        await pilot.pause()
        await pilot.press(*"chats.jsonl", "enter")
        new = await settle(pilot)
        assert new.situation.problem is None and new.situation.plan is not None

    flow(steps)


@pytest.mark.parametrize(("keys", "read"), [(["enter"], "alpaca"), (["end", "enter"], "text")])
def test_unknown_columns_are_asked_for(here: Path, keys: list[str], read: str) -> None:
    rows = "".join(f"What is {number}?,It is {2 * number}.\n" for number in range(150))
    (here / "faq.csv").write_text("frage,antwort_text\n" + rows)

    async def steps(app: App, pilot: Pilot[Any]) -> None:
        assert "which columns" in shown(app)
        await press(pilot, "enter", "enter")
        assert "Which column holds the answer?" in shown(app) and "It is" in shown(app)
        new = await press(pilot, *keys)
        assert new.situation.plan is not None and new.situation.problem is None
        assert new.situation.plan.data.report.format.format == read

    flow(steps, {"data": str(here / "faq.csv")})


def write_pairs(folder: Path) -> Path:
    path = folder / "notes.jsonl"
    rows = [{"text": f"note {n} on tuning", "label": ("rate", "rank")[n % 2]} for n in range(160)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_with_classes_are_sorted_or_embedded_as_one_chooses(here: Path) -> None:
    data = write_pairs(here)

    async def steps(app: App, pilot: Pilot[Any]) -> None:
        new = await settle(pilot)
        recipe = new.situation.draft.recipe
        assert recipe is not None and recipe.method.kind == "classification"
        said = shown(app)
        assert "● classification" in said and "  embedding" in said and "classes" in said
        await press(pilot, "2")
        assert "ModernBERT-base" in shown(app)
        await press(pilot, "3")
        said = shown(app)
        assert "note" in said and "No chat template writes these rows" in said
        await press(pilot, "t")
        assert any("No template writes" in one.message for one in app._notifications)
        await press(pilot, "4")
        assert "the larger of the two usual ranks" in shown(app)
        await press(pilot, "6")
        assert "method" in shown(app) and "classification" in shown(app)
        await press(pilot, "1")
        listed = new.query_one("#data-list", StepList)
        listed.highlighted = listed.get_option_index("method-embedding")
        await press(pilot, "enter")
        recipe = new.situation.draft.recipe
        assert recipe is not None and recipe.method.kind == "embedding"
        assert new.situation.problem is None and "● embedding" in shown(app)

    flow(steps, {"data": str(data)}, size=(120, 40))
