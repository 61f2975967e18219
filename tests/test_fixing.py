"""Patches go into a copy of the recipe, contradictions are said, and nothing is run or written unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.command_line import whet
from support.plan_inputs import write_chats
from support.tiny_models import build_tiny_model
from support.tiny_runs import create_run, next_attempt, tiny_recipe

from whet.engine.errors import WhetError
from whet.engine.findings import Finding, Fix
from whet.engine.fixing import propose
from whet.engine.runs.events import FindingEvent
from whet.engine.yaml_edit import set_key

TEXT = """# what this is for
name: mine   # shown in lists
model:
  name: demo
  max_length: 512  # enough
data:
  train: chats.jsonl

  # a twentieth
  eval_fraction: 0.05
export:
  gguf: [q8_0]   # small
"""


def finding(id: str, severity: Any = "warning", patch: dict[str, Any] | None = None, **fix: Any) -> Finding:
    return Finding(id=id, severity=severity, title=f"{id}.", fix=Fix(text="Do.", patch=patch or {}, **fix))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("model.max_length", 1024, "  max_length: 1024  # enough"),
        ("data.template", None, "  eval_fraction: 0.05\n  template: null\n"),
        ("export.gguf", ["q6_k", "f16"], "  gguf: [q6_k, f16]   # small"),
        ("training.keep_checkpoints", 1, "training:\n  keep_checkpoints: 1"),
        ("accept", ["D16"], "accept: [D16]"),
        ("name", "yours", "name: yours   # shown in lists"),
        ("model.name", "a: b # c", "  name: 'a: b # c'\n"),
    ],
)
def test_one_key_changes_and_every_other_line_stays(key: str, value: Any, line: str) -> None:
    edited = set_key(TEXT, key, value)
    assert line in edited
    section, _, name = key.rpartition(".")
    values = yaml.safe_load(edited)
    assert (values[section] if section else values)[name] == value
    kept = [one for one in TEXT.splitlines() if one.split(":")[0].strip() != key.rpartition(".")[2]]
    assert set(kept) <= set(edited.splitlines())


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("model: {name: demo}\ndata: {train: demo}\n", "model.max_length", 64),
        ("", "model.name", "demo"),
        ("data:\n  train:\n    - a.jsonl\n    - b.jsonl\n# end\n", "data.train", ["c.jsonl"]),
        ("data:\n  train:\n    - a.jsonl\n  # why\n  split: x\n", "data.train", "b.jsonl"),
        ("sampling:\n  prompts:\n  - |\n    two\n    lines\n", "sampling.max_new_tokens", 8),
        ("base: &b {rank: 4}\nadapter: *b\n", "adapter.alpha", 8),
        ("model:\n", "model.name", "demo"),
    ],
)
def test_any_way_of_writing_it_gives_the_right_values(text: str, key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    before = yaml.safe_load(text) or {}
    after = yaml.safe_load(set_key(text, key, value))
    assert after[section][name] == value
    assert after == {**before, section: {**(before.get(section) or {}), name: value}}


def test_a_section_in_braces_stays_one_and_the_rest_keeps_its_comments() -> None:
    text = "# mine\nmodel: {name: demo}  # tiny\ndata:\n  train: a.jsonl  # rows\n"
    edited = set_key(text, "model.max_length", 64)
    assert edited == text.replace("{name: demo}", "{name: demo, max_length: 64}")


def test_comments_before_the_next_key_survive_a_replaced_list() -> None:
    edited = set_key("data:\n  train:\n    - a.jsonl\n  # why\n  split: x\n", "data.train", "b.jsonl")
    assert edited == "data:\n  train: b.jsonl\n  # why\n  split: x\n"


def test_patches_conflicts_and_what_is_for_a_person() -> None:
    found = [
        finding("D02", "error", {"model.max_length": 2048}),
        finding("D04", "warning", {"model.max_length": 1024, "name": "other"}),
        finding("D05", "warning", command="whet doctor"),
        finding("D16", "error", {"accept": ["D16"]}),
        finding("L08", "note", {"adapter.dropout": 0.0}),
    ]
    proposal = propose(TEXT, found)
    assert [one.id for one in proposal.applied] == ["D02"]
    assert [one.id for one in proposal.by_hand] == ["D05", "D16"]
    assert [one.id for one in proposal.notes] == ["L08"]
    (conflict,) = proposal.conflicts
    assert (conflict.finding.id, conflict.key, conflict.wanted, conflict.kept, conflict.by) == (
        "D04", "model.max_length", 1024, 2048, "D02",
    )  # fmt: skip
    values = yaml.safe_load(proposal.text)
    assert values["model"]["max_length"] == 2048 and values["name"] == "mine" and "accept" not in values
    assert "-  max_length: 512  # enough\n+  max_length: 2048  # enough\n" in proposal.diff


def test_named_ids_take_notes_and_acceptance_too() -> None:
    found = [
        finding("D16", "error", {"accept": ["D16"]}),
        finding("L11", "error", {"accept": ["L11"], "training.batch_size": 1}),
        finding("L08", "note", {"adapter.dropout": 0.0}),
    ]
    proposal = propose(TEXT + "accept: [D01]\n", found, ["d16", "L08", "L11"])
    values = yaml.safe_load(proposal.text)
    assert values["accept"] == ["D01", "D16", "L11"] and values["adapter"] == {"dropout": 0.0}
    assert not proposal.conflicts and len(proposal.applied) == 3
    with pytest.raises(
        WhetError, match=r"Nothing was found under D99\. Findings here: D16, L11, L08"
    ) as error:
        propose(TEXT, found, ["D99"])
    assert error.value.code == "fix.unknown_id"


def test_lists_take_what_each_finding_adds() -> None:
    found = [
        finding("D12", patch={"data.drop": ["duplicates"]}),
        finding("D12", patch={"data.drop": ["empty"]}),
        finding("D08", patch={"model.end_tokens": ["<|im_end|>"]}),
    ]
    proposal = propose(TEXT, found, [])
    values = yaml.safe_load(proposal.text)
    assert values["data"]["drop"] == ["duplicates", "empty"] and proposal.conflicts == []
    assert values["model"]["end_tokens"] == ["<|im_end|>"]


def test_a_patch_that_makes_no_recipe_is_refused() -> None:
    with pytest.raises(WhetError) as error:
        propose(TEXT, [finding("D12", patch={"data.eval": "other.jsonl"})])
    assert error.value.code == "recipe.invalid" and "eval_fraction" in str(error.value)


def test_a_damaged_patch_is_refused_as_a_recipe_is() -> None:
    with pytest.raises(WhetError, match="accept") as caught:
        propose(TEXT, [finding("D12", patch={"accept": [{"D12": 1}]})], ["D12"])
    assert caught.value.code == "recipe.invalid"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Rows longer than they may be, on a model that is a real one."""
    model, rows = build_tiny_model(tmp_path / "model"), write_chats(tmp_path / "chats.jsonl", 1000)
    file = tmp_path / "mine.yaml"
    text = f"# mine\nmodel:\n  name: {model}\n  max_length: 4096  # too long\ndata:\n  train: {rows}\n"
    file.write_text(text)
    return file


def test_fix_shows_and_writes_only_when_asked(recipe: Path, tmp_path: Path) -> None:
    before = recipe.read_text()
    answer = whet("fix", str(recipe))
    assert answer.code == 0, answer.err
    assert "+  max_length: 512  # too long" in answer.out and "D04" in answer.out
    assert "no error and no warning" in answer.out and "-o FILE or --in-place" in answer.out
    assert recipe.read_text() == before
    out = tmp_path / "fixed.yaml"
    assert whet("fix", str(recipe), "D04", "-o", str(out)).code == 0
    assert out.read_text() == before.replace("4096", "512") and recipe.read_text() == before
    again = whet("fix", str(recipe), "-o", str(out))
    assert again.code == 1 and "exists" in again.err
    assert whet("fix", str(recipe), "--in-place").code == 0
    assert recipe.read_text() == out.read_text()
    assert "No patch to apply" in whet("fix", str(recipe)).out


def test_fix_as_json_and_its_refusals(recipe: Path) -> None:
    found = whet("fix", str(recipe), "--json").json
    assert [one["id"] for one in found["applied"]] == ["D04"] and found["left"] == found["blocked"] == []
    assert found["written"] is None and yaml.safe_load(found["recipe"])["model"]["max_length"] == 512
    assert whet("fix", "demo", "--in-place", "--json").json["error"]["code"] == "fix.no_file"
    assert whet("fix", str(recipe), "X05", "--json").json["error"]["code"] == "fix.unknown_id"
    assert whet("fix", str(recipe) + "x.yaml", "--json").json["error"]["code"] == "recipe.not_found"
    assert whet("fix", str(recipe), "--in-place", "-o", "x").code == 2


def test_a_run_is_fixed_by_what_it_showed(tmp_path: Path) -> None:
    model, rows = build_tiny_model(tmp_path / "model"), write_chats(tmp_path / "chats.jsonl", 1000)
    run = create_run(tiny_recipe(model, rows))
    context = next_attempt(run)
    seen = finding("T07", "warning", {"training.learning_rate": 1e-4})
    context.emit(FindingEvent(finding=seen))
    context.close("finished")
    assert whet("fix", run.id, "--in-place").code == 1
    out = tmp_path / "next.yaml"
    answer = whet("fix", run.id, "-o", str(out))
    assert answer.code == 0 and "whet train" in answer.out
    assert yaml.safe_load(out.read_text())["training"]["learning_rate"] == 1e-4
