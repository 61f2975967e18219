"""Runs that another version of whet started are read as they are, or refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.command_line import whet
from support.tiny_runs import create_run, tiny_recipe, write_chat_rows

from whet.engine.demo import MODEL_DIR
from whet.engine.errors import WhetError
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.run_view import view_run
from whet.engine.runs import supervisor
from whet.engine.runs.store import RunDir

SHORT = {"name": "length", "at_most": 20}
OTHER_RULES: dict[str, dict[str, Any]] = {
    "products": {"model.products": "fp8"},
    "ends": {"adapter.train_embeddings": True, "adapter.kind": "none"},
    "preference": {"method": {"kind": "preference", "loss": "robust"}},
    "grpo": {"method": {"kind": "grpo", "rewards": [SHORT], "overlong_buffer": 9999}},
    "vision": {
        "method": {"kind": "vision", "finetune_attention_modules": False, "finetune_mlp_modules": False}
    },
}
"""Recipes that rules of today refuse."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    made = create_run(tiny_recipe(MODEL_DIR, write_chat_rows(tmp_path / "rows.jsonl")))
    made.write_state(status="stopped", launched=1.0, attempt=1)
    return made


def rewrite(run: RunDir, changes: dict[str, Any]) -> dict[str, Any]:
    """Change settings of the recipe in a run's plan; returns that recipe."""
    plan = json.loads(run.plan.read_text())
    for key, value in changes.items():
        *sections, name = key.split(".")
        place = plan["recipe"]
        for section in sections:
            place = place[section]
        place[name] = value
    run.plan.write_text(json.dumps(plan))
    recipe: dict[str, Any] = plan["recipe"]
    return recipe


@pytest.mark.parametrize("rule", OTHER_RULES)
def test_a_newer_rule_does_not_hold_for_an_older_run(run: RunDir, rule: str) -> None:
    recipe = rewrite(run, OTHER_RULES[rule])
    with pytest.raises(ValueError, match=r"method|model|adapter"):
        Recipe.model_validate(recipe)
    read = run.load_plan().recipe.model_dump(mode="json")
    key, value = next(iter(OTHER_RULES[rule].items()))
    for name in key.split("."):
        read = read[name]
    if isinstance(value, dict):
        read = {name: read[name] for name in value if name != "rewards"}
        value = {name: value[name] for name in read}
    assert read == value
    assert view_run(run).plan == run.load_plan()


def test_overrides_make_a_new_plan_which_keeps_the_rules(run: RunDir) -> None:
    rewrite(run, OTHER_RULES["products"])
    with pytest.raises(WhetError) as caught:
        supervisor.resume(run, ["training.max_steps=7"])
    assert "model.products=fp8" in caught.value.message and run.status() == "stopped"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"training.warp": 9}, "recipe.training.warp"),
        ({"training.batch_size": 0}, "recipe.training.batch_size"),
    ],
)
def test_a_setting_that_is_unknown_is_named(run: RunDir, change: dict[str, Any], named: str) -> None:
    rewrite(run, change)
    with pytest.raises(WhetError) as caught:
        view_run(run)
    assert caught.value.code == "run.plan_unreadable" and named in caught.value.message
    assert str(run.recipe) in caught.value.hint and "Nothing is lost" in caught.value.hint


@pytest.mark.parametrize("damage", [b"", b"{", b"\x00" * 200, None])
def test_a_plan_that_is_none(run: RunDir, damage: bytes | None) -> None:
    """In words from the command line, and the list of runs still has it."""
    run.plan.unlink() if damage is None else run.plan.write_bytes(damage)
    said = whet("show", run.id)
    assert said.code == 1 and "cannot be read" in said.err and "start a new run" in said.err
    assert whet("show", run.id, "--json").json["error"]["code"] == "run.plan_unreadable"
    assert run.id in whet("runs").out


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_prepared_data_that_changed_is_prepared_again(run: RunDir, how: str) -> None:
    """From the same rows, so that the resumed run sees the tokens of before."""
    data = run.load_plan().data
    whole = data.train.read_bytes()
    assert data.is_complete()
    if how == "flipped":
        data.train.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    elif how == "cut":
        data.train.write_bytes(whole[:3000])
    else:
        data.train.unlink()
    assert not data.is_complete()
    if how != "flipped":  # sizes are looked at with every plan, contents when a run begins
        make_plan(run.load_plan().recipe)
        assert data.is_complete() and data.train.read_bytes() == whole
