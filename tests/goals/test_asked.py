"""What is asked for beside a goal wins or is refused; the same goal gives the same recipe, by each door."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.command_line import whet
from support.goal_inputs import MACHINES, SMALL, turns, write_rows
from support.plan_inputs import machine, write_chats

from whet.engine.errors import WhetError
from whet.engine.goals import Goal, Proposal, propose
from whet.engine.goals.draft import flat
from whet.engine.recipe_files import load_recipe


def test_overrides_win_over_every_rule(three: Path, chats: Path) -> None:
    overrides = {
        "adapter": {"rank": 8},
        "training.epochs": 2.5,
        "training.learning_rate": 1e-4,
        "data.eval_fraction": 0.2,
        "model.precision": "int8",
        "export.gguf": ["q8_0"],
        "sampling.prompts": ["Hello?"],
    }
    goal = Goal(data=str(chats), model=SMALL, max_minutes=0.001, overrides=overrides)
    found = propose(goal, machine=MACHINES["24 GiB"])
    for key, value in flat(overrides).items():
        section, _, name = key.partition(".")
        assert getattr(getattr(found.recipe, section), name) == value
        assert found.reasons[key] == "asked for" and found.plan.origins[key] == "override"
    assert all(not set(option.patch) & set(flat(overrides)) for option in found.alternatives)


def test_a_pinned_setting_is_not_mended(tmp_path: Path, tiny: Path) -> None:
    rows = [turns(f"Say {n % 150}.", f"Well: {n % 150}.") for n in range(400)]
    data = write_rows(tmp_path / "twice.jsonl", rows)
    goal = Goal(data=str(data), model=str(tiny), overrides={"data.drop": []})
    found = propose(goal, machine=machine())
    assert found.recipe.data.drop == []
    assert "D12" in {finding.id for finding in found.plan.findings if finding.severity == "warning"}


def test_all_weights_on_request(three: Path, chats: Path) -> None:
    goal = Goal(data=str(chats), model=SMALL, overrides={"adapter.kind": "none"})
    found = propose(goal, machine=MACHINES["80 GiB"])
    assert found.recipe.training.learning_rate == load_recipe("full-finetune").training.learning_rate
    assert found.plan.resolved.base_precision == "fp32" and "adapter.rank" not in found.reasons


@pytest.mark.parametrize(
    ("overrides", "code", "hint"),
    [
        ({"training.epoch": 2}, "recipe.unknown_key", "training.epochs"),
        ({"adapter.lora_alpha": 2}, "recipe.unknown_key", "adapter.alpha"),
        ({"training.epochs": -1}, "recipe.invalid", "training.epochs"),
        ({"export.gguf": ["q4_km"]}, "recipe.invalid", "q4_k_m"),
    ],
)
def test_wrong_overrides_are_refused_with_the_nearest(
    chats: Path, overrides: dict[str, Any], code: str, hint: str
) -> None:
    with pytest.raises(WhetError) as raised:
        propose(Goal(data=str(chats), overrides=overrides), machine=machine())
    assert raised.value.code == code and hint in f"{raised.value.message} {raised.value.hint}"


@pytest.mark.parametrize(
    ("goal", "code"),
    [
        ({"data": "no-such-file.jsonl"}, "data.not_found"),
        ({"data": "demo", "model": "no/model"}, "model.not_found"),
    ],
)
def test_what_is_not_there_is_an_error(goal: dict[str, Any], code: str) -> None:
    with pytest.raises(WhetError) as raised:
        propose(Goal(**goal), machine=machine())
    assert raised.value.code == code


def test_preference_rows_say_that_they_are_for_another_method(tmp_path: Path, tiny: Path) -> None:
    rows = ({"prompt": f"{n}?", "chosen": [1, n], "rejected": [2, n]} for n in range(200))
    with pytest.raises(WhetError) as raised:
        propose(Goal(data=str(write_rows(tmp_path / "p.jsonl", rows)), model=str(tiny)), machine=machine())
    assert raised.value.code == "data.format"


def test_the_same_goal_gives_the_same_recipe(
    three: Path, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever whet has kept from before."""
    goal = Goal(data=str(chats))
    first = propose(goal, machine=MACHINES["24 GiB"])
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "another home"))
    again = propose(goal, machine=MACHINES["24 GiB"])
    assert (first.recipe, first.reasons, first.plan.id) == (again.recipe, again.reasons, again.plan.id)
    assert Proposal.model_validate_json(first.model_dump_json()) == first


def test_progress_is_heard(tmp_path: Path) -> None:
    heard: list[int] = []
    propose(
        Goal(data=str(write_chats(tmp_path / "c.jsonl", 2500)), model="demo"), heard.append, machine=machine()
    )
    assert heard and max(heard) >= 2000


def test_suggest_writes_a_recipe_that_plans(
    chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = tmp_path / "mine.yaml"
    answer = whet("suggest", str(chats), "--set", "training.epochs=1", "-o", str(out))
    assert answer.code == 0 and f"whet train {out}" in answer.out
    text = out.read_text()
    assert text.startswith("# Proposed by whet.") and "# no GPU" in text
    assert "  # about 60 of 1,200 rows are held out" in text
    assert load_recipe(out).training.epochs == 1
    assert whet("plan", str(out)).code == 0
    assert whet("suggest", str(chats), "-o", str(out)).code == 1, "a file is not replaced"


def test_suggest_prints_the_recipe_alone_on_stdout(chats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    answer = whet("suggest", str(chats), "--goal", "speed", "--max-minutes", "5")
    assert yaml.safe_load(answer.out)["data"]["train"] == str(chats)
    assert "not met" in answer.err and "Nothing is written" in answer.err
    document = whet("suggest", str(chats), "--json").json
    assert document["recipe"]["model"]["name"] == "demo" and document["reasons"]["model.name"]
    assert document["yaml"] and document["written"] is None
    few = whet("suggest", str(write_chats(chats.with_name("few.jsonl"), 20)))
    assert few.code == 4
