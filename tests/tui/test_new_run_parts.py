"""The parts of New run without a terminal: the draft, fields from the schema, the meter, the browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.plan_inputs import plan_for, write_chats
from support.tiny_models import build_tiny_model

from whet.engine import api
from whet.tui import drafts
from whet.tui.editor import editor_command
from whet.tui.screens.new_run.advice import actions_of, advice_of, flat
from whet.tui.screens.new_run.data_step import lines_around, preview_of, problem_rows
from whet.tui.screens.new_run.draft import BY_YOU, Draft, free_name
from whet.tui.screens.new_run.fields import COMMON, Field, fields_of, round_step, words_of
from whet.tui.screens.new_run.goal_step import limit_of
from whet.tui.screens.new_run.messages import Situation
from whet.tui.screens.new_run.planning import Answer, Planner, effect_of, planned
from whet.tui.screens.new_run.recipe_view import changed_lines, yaml_text
from whet.tui.widgets.file_browser import end_of, entries_of
from whet.tui.widgets.finding_card import diff_text, fixable
from whet.tui.widgets.fit_meter import bar, cells, legend, verdict, way_out

OWN = """# mine
model:
  name: demo
data:
  train: demo   # rows
adapter:
  # because
  rank: 16
"""


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("meter") / "model", "llama")


FIELDS = {one.key: one for one in fields_of(api.schema())}


# --- fields


def test_every_setting_of_the_recipe_is_a_field() -> None:
    methods = ("embedding", "classification", "preference")
    others = {one.key for kind in methods for one in fields_of(api.schema(), kind)}
    assert set(COMMON) <= set(FIELDS) | others
    assert {"method.loss", "method.matryoshka"} <= others and "method.loss" not in FIELDS
    assert len(FIELDS) > 60 and "method.kind" not in FIELDS
    assert FIELDS["adapter.kind"].choices == ("lora", "rslora", "dora", "none")
    assert FIELDS["training.max_steps"].optional and FIELDS["training.max_steps"].kind == "whole"
    assert FIELDS["adapter.rank"].help == "Rank r of the update."
    assert FIELDS["data.drop"].kind == "list" and "duplicates" in FIELDS["data.drop"].choices


def test_what_is_shown_reads_back_as_the_same_value() -> None:
    """Every default, and the values that people type, survive being shown and typed again."""
    typed: dict[str, list[Any]] = {
        "sampling.prompts": [["a, b", "c"], []],
        "training.learning_rate": [2e-4, 1.5e-3],
        "export.gguf": [["q8_0", "q4_k_m"]],
        "data.columns": [{"prompt": "question"}],
        "training.max_steps": [None, 1200],
        "adapter.target_modules": [["q_proj"], "all-linear"],
        "method.packing": [True, False],
    }
    for key, field in FIELDS.items():
        defaults = [field.default] if field.default is not None or field.optional else []
        for value in [*defaults, *typed.get(key, [])]:
            read = field.value_of(words_of(value))
            assert read == value, key
    assert FIELDS["training.batch_size"].value_of("1,024") == 1024
    assert FIELDS["training.batch_size"].value_of("many") == "many"


def test_steps_stay_inside_what_a_setting_may_be() -> None:
    rank, share, rate = FIELDS["adapter.rank"], FIELDS["data.eval_fraction"], FIELDS["training.learning_rate"]
    assert [rank.step(16, True), rank.step(16, False), rank.step(1, False)] == [32, 8, 1]
    assert [share.step(0.0, True), share.step(0.05, False), share.step(0.95, True)] == [0.05, 0.0, 0.95]
    assert [rate.step(2e-4, True), rate.step(2e-4, False)] == [5e-4, 1e-4]
    assert FIELDS["adapter.kind"].step("none", True) == "lora"
    assert FIELDS["training.max_steps"].step(None, True) == 1
    assert FIELDS["training.max_steps"].step(1, False) is None
    assert FIELDS["method.packing"].step(False, True) is True
    assert FIELDS["data.system"].step("a", True) == "a"
    assert [round_step(0.0015, True), round_step(0.0015, False), round_step(1, False)] == [0.002, 0.001, 0.5]


# --- the draft


def test_an_edit_changes_its_line_and_takes_its_old_reason_away() -> None:
    draft = Draft.of(OWN)
    draft.reasons["adapter.rank"] = "because"
    assert draft.type_in(FIELDS["adapter.rank"], "32")
    assert draft.text == OWN.replace("  # because\n  rank: 16", "  rank: 32")
    assert draft.reasons["adapter.rank"] == BY_YOU and draft.edited == {"adapter.rank": 32}
    assert draft.undo() == "adapter.rank" and draft.text == OWN
    assert draft.undo() is None


def test_a_comment_of_a_persons_own_stays() -> None:
    draft = Draft.of(OWN)
    draft.put({"adapter.rank": 8})
    assert "# because" in draft.text and "rank: 8" in draft.text


def test_what_cannot_be_is_kept_as_typed_until_it_can() -> None:
    """Two settings that only fit together: the first waits for the second."""
    draft = Draft.of(OWN)
    draft.put({"model.precision": "nf4"})
    assert not draft.type_in(FIELDS["adapter.kind"], "none")
    wrong = draft.wrong["adapter.kind"]
    assert wrong.words == "none" and "model.precision" in wrong.reason
    assert draft.recipe is not None and draft.recipe.adapter.kind == "lora"
    assert draft.type_in(FIELDS["model.precision"], "bf16")
    assert not draft.wrong
    assert draft.recipe.adapter.kind == "none" and draft.recipe.model.precision == "bf16"


def test_a_wrong_number_says_why_and_other_fields_go_on() -> None:
    draft = Draft.of(OWN)
    assert not draft.type_in(FIELDS["training.batch_size"], "-3")
    assert "greater than or equal to 1" in draft.wrong["training.batch_size"].reason
    assert draft.type_in(FIELDS["adapter.rank"], "4")
    assert list(draft.wrong) == ["training.batch_size"]
    assert draft.type_in(FIELDS["training.batch_size"], "3") and not draft.wrong


def test_a_text_that_is_no_recipe_is_kept_aside() -> None:
    draft = Draft.of(OWN)
    with pytest.raises(api.WhetError, match=r"recipe:7: adapter\.rnak is not a setting") as error:
        draft.read(OWN.replace("  # because\n  rank", "  rnak"))
    assert "adapter.rank" in error.value.hint
    assert draft.text == OWN and draft.rejected is not None and "rnak" in draft.rejected
    draft.reasons = {"model.name": "asked for", "adapter.rank": "because"}
    draft.read(OWN.replace("16", "8"))
    assert draft.rejected is None and draft.own_text and draft.changed
    assert draft.edited == {"adapter.rank": 8}
    assert draft.reasons == {"model.name": "asked for", "adapter.rank": BY_YOU}, (
        "what stayed keeps its reason"
    )


def test_proposals_keep_what_was_set_by_hand(tmp_path: Path) -> None:
    draft = Draft.of({"data": str(write_chats(tmp_path / "chats.jsonl", 200)), "model": "demo"})
    draft.take(api.propose(draft.goal()))
    assert "# asked for" not in draft.text.splitlines()[0] and draft.reasons["adapter.rank"]
    draft.type_in(FIELDS["adapter.rank"], "4")
    draft.priority = "memory"
    draft.take(api.propose(draft.goal()))
    assert draft.recipe is not None and draft.recipe.adapter.rank == 4
    assert draft.reasons["adapter.rank"] == BY_YOU
    draft.undo()
    assert draft.priority == "quality", "the goal of the text that is there again"
    draft.choose_data("demo")
    assert draft.edited == {"adapter.rank": 4} and draft.data == "demo"


def test_drafts_are_files_that_can_be_opened_again(home: Path) -> None:
    draft = Draft.of(OWN)
    draft.put({"adapter.rank": 2})
    assert draft.changed and draft.keep() == "demo" and not draft.changed
    assert drafts.names() == ["demo"] and (home / "drafts" / "demo.yaml").read_text() == draft.text
    again = Draft.of(drafts.path("demo"))
    assert again.text == draft.text and again.name == "demo" and not again.changed
    assert free_name("demo", drafts.names()) == "demo-2"
    assert Draft.of("lora-chat").recipe is not None, "a shipped recipe by its name"


# --- planning


def broken_rows(path: Path, rows: int = 150) -> Path:
    """Chats with one line that is no JSON and one empty answer."""
    lines = write_chats(path, rows).read_text().splitlines()
    lines[9] = '{"messages": [{"role"'
    lines[19] = json.dumps(
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": ""}]}
    )
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_fix_makes_its_finding_vanish(tmp_path: Path) -> None:
    data = broken_rows(tmp_path / "broken.jsonl")
    draft = Draft.of(OWN.replace("train: demo", f"train: {data}"))
    before = planned(draft.text, 1, print)
    assert before.plan is not None and [one.id for one in before.plan.blocked()] == ["D15"]
    assert {(line, why) for _, line, why in problem_rows(before.plan.data.report)} >= {(20, "an empty reply")}
    finding = fixable(before.plan.findings)[0]
    said = effect_of(api.patch_text(draft.text, [finding], ["D15"]).text, before.plan.findings)
    assert "149 rows train" in said and "mended: D15; left: no error" in said
    assert "+  bad_rows: skip" in draft.fix(finding)
    after = planned(draft.text, 1, print)
    assert after.plan is not None and after.plan.blocked() == []
    assert "# rows" in draft.text, "comments stay"


def test_what_cannot_be_planned_is_an_answer_not_an_exception(tmp_path: Path) -> None:
    answer = planned(OWN.replace("train: demo", "train: nowhere.jsonl"), 1, print)
    assert answer.plan is None and answer.problem is not None and answer.problem.code == "data.not_found"
    situation = Situation(Draft.of(OWN), problem=answer.problem)
    assert advice_of("settings", situation)[0].key == "1"


def test_the_planner_does_one_thing_at_a_time_and_the_newest_last() -> None:
    begun: list[Callable[[], Answer]] = []
    ends: list[Callable[[Answer], None]] = []
    answers: list[Answer] = []

    def run(work: Callable[[], Answer], done: Callable[[Answer], None]) -> None:
        begun.append(work)
        ends.append(done)

    planner = Planner(run, answers.append)
    for text in ("one", "two", "three"):
        draft = Draft.of(OWN)
        draft.text = text
        planner.plan(draft, 1)
    assert len(begun) == 1 and planner.busy and planner.waiting
    ends.pop()(Answer("one"))
    assert len(begun) == 2 and not planner.waiting, "the second was never begun"
    ends.pop()(Answer("three"))
    assert [one.text for one in answers] == ["one", "three"] and not planner.busy


# --- the meter


def test_cells_are_shared_without_losing_one() -> None:
    assert cells([1, 1, 1], 3, 10) == [3, 4, 3]
    assert sum(cells([5, 5], 20, 9)) == round(9 * 10 / 20)
    assert cells([], 0, 5) == []


def test_the_bar_follows_rank_and_marks_the_end_of_too_small_a_gpu(tiny_model: Path, tmp_path: Path) -> None:
    roomy = plan_for(tiny_model, tmp_path, 80, model__precision="bf16")
    assert len(bar(roomy, 60).plain) == 60 and "fits" in verdict(roomy).plain and way_out(roomy) == ""
    more = plan_for(tiny_model, tmp_path, 80, model__precision="bf16", adapter__rank=256)
    count = len(bar(more, 200, ascii=True).plain.rstrip("."))
    assert count > len(bar(roomy, 200, ascii=True).plain.rstrip("."))
    tight = plan_for(tiny_model, tmp_path, 12, model__precision="bf16")
    assert "too much" in verdict(tight).plain and "┃" in bar(tight, 40).plain
    assert "4 bits" in way_out(tight), "what to change, with what it then needs"
    lines = legend(roomy, 30)
    assert "█ base 15.0 GiB" in " ".join(line.plain for line in lines)
    assert all(line.cell_len <= 30 for line in lines)


# --- browser, recipe, words


def test_a_folder_lists_what_can_be_read(tmp_path: Path) -> None:
    for name in ("b.jsonl", "A.csv", "notes.bin", ".hidden.jsonl"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "deeper").mkdir()
    entries = entries_of(tmp_path, api.data_suffixes())
    assert [one.label for one in entries] == ["..", "this folder", "deeper/", "A.csv", "b.jsonl"]
    assert entries_of(tmp_path / "deeper", (".csv",))[-1].label == "(no data files here)"
    assert end_of("x" * 60, 10) == "…" + "x" * 9


def test_rows_are_previewed_and_found_again(tmp_path: Path) -> None:
    data = broken_rows(tmp_path / "broken.jsonl")
    shown = lines_around(data, 10).plain
    assert "▸     10" in shown and "12  " in shown and "13  " not in shown
    assert "no lines" in lines_around(tmp_path / "rows.parquet", 3).plain
    from rich.console import Console

    console = Console(width=80)
    with console.capture() as captured:
        console.print(preview_of(str(data)))
        console.print(preview_of(str(tmp_path / "none.jsonl")))
    assert "What is 0 plus 1?" in captured.get() and "There is no data at" in captured.get()


def test_the_recipe_marks_what_changed_and_wraps_comments() -> None:
    after = OWN.replace("rank: 16", "rank: 32")
    assert changed_lines(OWN, after) == {7}
    text = "model:\n  # one two three four five six seven\n  name: demo\n"
    assert yaml_text(text, text, 24).plain.splitlines()[1:3] == [
        "   # one two three four",
        "   # five six seven",
    ]
    assert yaml_text(after, OWN, 60).plain.splitlines()[7] == "▌  rank: 32"


def test_a_diff_shows_what_changes_and_where() -> None:
    diff = api.patch_text(OWN, [finding_that_skips()], ["D15"]).diff
    assert diff_text(diff).plain.splitlines()[-1] == "+  bad_rows: skip"


def finding_that_skips() -> api.Finding:
    fix = api.Fix(text="Skip.", patch={"data.bad_rows": "skip"})
    return api.Finding(id="D15", severity="error", title="Rows.", fix=fix)


def test_the_copied_forms_hold_the_whole_recipe() -> None:
    start, _ = actions_of(Situation(Draft.of(OWN)), "mine.yaml")
    assert "whet train mine.yaml" in start.cli and "rank: 16" in start.cli
    scope: dict[str, Any] = {}
    exec(start.forms()["Python"].partition("api.start")[0], scope)
    assert scope["plan"].recipe.adapter.rank == 16
    assert '"adapter.rank": 16' in start.mcp and "run_start(" in start.mcp
    assert flat({"data": {"columns": {"a": "b"}}}) == {"data.columns": {"a": "b"}}


@pytest.mark.parametrize(("words", "value"), [("", None), ("90", 90.0), ("0", False), ("x", False)])
def test_limits_are_numbers_or_none(words: str, value: object) -> None:
    assert limit_of(words) == value and type(limit_of(words)) is type(value)


def test_editors_open_at_a_line_where_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "nano -w")
    assert editor_command(Path("a.jsonl"), 7) == ["nano", "-w", "+7", "a.jsonl"]
    monkeypatch.setenv("EDITOR", "code --wait")
    assert editor_command(Path("a.jsonl"), 7) == ["code", "--wait", "a.jsonl"]


def test_a_choice_with_none_can_be_stepped() -> None:
    field = Field("data.template", "", "choice", ("", "chatml"), optional=True)
    assert field.step(None, True) == "chatml" and field.value_of(field.step("chatml", True)) is None
