"""From a goal to a model: the machine, the priority and the limits choose it, and nothing is hidden."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cached_models import NOWHERE, cache_models
from support.goal_inputs import GIB, LARGE, MACHINES, MIDDLE, SMALL, WITHOUT_GGUF, sound

from whet.engine import api
from whet.engine.goals import Goal, propose
from whet.engine.recipe_files import load_recipe


@pytest.mark.parametrize(
    ("where", "model", "precision"),
    [("8 GiB", MIDDLE, "nf4"), ("24 GiB", LARGE, "auto"), ("80 GiB", LARGE, "auto"), ("CPU", SMALL, "auto")],
)
def test_quality_takes_the_largest_that_fits_and_a_cpu_a_small_one(
    three: Path, chats: Path, where: str, model: str, precision: str
) -> None:
    found = propose(Goal(data=str(chats)), machine=MACHINES[where])
    sound(found)
    assert (found.recipe.model.name, found.recipe.model.precision) == (model, precision)
    assert found.unmet == []
    assert ("machine" in found.reasons) == (where == "CPU")
    assert found.recipe.adapter.rank == found.recipe.adapter.alpha == 32
    assert any("whet is offline" in line for line in found.passed_over)
    if where == "8 GiB":
        assert "4 bits" in found.reasons["model.precision"] and any("4 bits" in one for one in found.changed)
        assert any(line.startswith(LARGE) and "fit" in line for line in found.passed_over)
    if where == "CPU":
        assert found.recipe.training.epochs == 1 and "slow" in found.reasons["machine"]


def test_speed_and_memory_take_a_small_model(three: Path, chats: Path) -> None:
    quick = propose(Goal(data=str(chats), priority="speed"), machine=MACHINES["24 GiB"])
    light = propose(Goal(data=str(chats), priority="memory"), machine=MACHINES["24 GiB"])
    best = propose(Goal(data=str(chats)), machine=MACHINES["24 GiB"])
    for found in (quick, light):
        sound(found)
        assert found.recipe.model.name == SMALL and found.recipe.adapter.rank == 16
    assert light.recipe.model.precision == "nf4"
    assert light.plan.memory.needed < quick.plan.memory.needed < best.plan.memory.needed
    assert quick.plan.seconds is not None and best.plan.seconds is not None
    assert quick.plan.seconds < best.plan.seconds


def test_a_bare_offline_machine_gets_the_demo_model_and_is_told_so(chats: Path) -> None:
    found = propose(Goal(data=str(chats)), machine=MACHINES["CPU"])
    sound(found)
    assert found.recipe.model.name == "demo" and "learning only" in found.reasons["model.name"]
    like = load_recipe("demo").training
    assert found.recipe.training.learning_rate == like.learning_rate


def test_a_hub_that_cannot_be_reached_is_asked_once(
    bare: Path, chats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHET_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    cache_models(bare, [SMALL])
    found = propose(Goal(data=str(chats)), machine=MACHINES["8 GiB"])
    assert found.recipe.model.name == SMALL
    assert sum("cannot be reached" in line for line in found.passed_over) == 1


def test_a_model_without_gguf_is_passed_over_unless_none_is_wanted(bare: Path, chats: Path) -> None:
    cache_models(bare, [SMALL])
    cache_models(bare, ["microsoft/Phi-4-mini-instruct"], **WITHOUT_GGUF)
    usual = propose(Goal(data=str(chats)), machine=MACHINES["24 GiB"])
    assert usual.recipe.model.name == SMALL and usual.recipe.export.gguf == ["q4_k_m"]
    assert any("Phi-4-mini" in line and "GGUF" in line for line in usual.passed_over)
    without = propose(Goal(data=str(chats), export=[]), machine=MACHINES["24 GiB"])
    assert without.recipe.model.name == "microsoft/Phi-4-mini-instruct"
    assert without.recipe.adapter.target_modules == ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


def test_a_model_without_gguf_is_better_than_the_demo(bare: Path, chats: Path) -> None:
    cache_models(bare, ["microsoft/Phi-4-mini-instruct"], **WITHOUT_GGUF)
    found = propose(Goal(data=str(chats)), machine=MACHINES["24 GiB"])
    sound(found)
    assert found.recipe.model.name == "microsoft/Phi-4-mini-instruct" and found.recipe.export.gguf == []


def test_a_named_model_that_has_no_gguf_says_why(bare: Path, chats: Path) -> None:
    cache_models(bare, ["microsoft/Phi-4-mini-instruct"], **WITHOUT_GGUF)
    goal = Goal(data=str(chats), model="microsoft/Phi-4-mini-instruct")
    found = propose(goal, machine=MACHINES["24 GiB"])
    assert "uses relu" in found.reasons["export.gguf"]
    assert found.recipe.export.gguf == [] and found.unmet == []
    asked = propose(goal.model_copy(update={"export": ["q8_0"]}), machine=MACHINES["24 GiB"])
    assert asked.recipe.export.gguf == [] and "q8_0 was asked for" in asked.unmet[0]
    assert asked.plan.blocked() == []


def test_a_memory_limit_holds_and_stays_in_the_recipe(three: Path, chats: Path) -> None:
    found = propose(Goal(data=str(chats), max_memory_gib=6), machine=MACHINES["80 GiB"])
    sound(found)
    assert found.recipe.training.max_memory_gib == 6
    assert found.plan.memory.needed <= 6 * GIB and found.recipe.model.name == MIDDLE
    assert all(option.memory_gib <= 6 for option in found.alternatives)
    again = api.plan(found.recipe)
    assert again.memory.capacity <= 6 * GIB


def test_a_memory_limit_that_nothing_meets_is_said(three: Path, chats: Path) -> None:
    found = propose(Goal(data=str(chats), model=LARGE, max_memory_gib=3), machine=MACHINES["80 GiB"])
    assert [finding.id for finding in found.plan.blocked()] == ["L11"]
    assert any("no setting makes this model fit" in line for line in found.unmet)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.9, "fewer passes"), (0.2, "another model or fewer steps")],
)
def test_a_time_limit_holds(three: Path, chats: Path, share: float, expected: str) -> None:
    whole = propose(Goal(data=str(chats)), machine=MACHINES["80 GiB"])
    assert whole.plan.seconds is not None and whole.recipe.training.epochs == 2
    limit = share * whole.plan.seconds / 60
    found = propose(Goal(data=str(chats), max_minutes=limit), machine=MACHINES["80 GiB"])
    sound(found)
    assert found.plan.seconds is not None and found.plan.seconds <= 60 * limit + 0.05
    assert found.unmet == [] and found.changed
    if expected == "fewer passes":
        assert found.recipe.model.name == LARGE and found.recipe.training.epochs == 1
        assert found.recipe.eval.early_stopping is None
    else:
        assert found.recipe.model.name == SMALL
        cut = found.recipe.training.max_steps is not None
        assert ("no model meets the limits" in found.reasons["model.name"]) == cut
        assert any(line.startswith(LARGE) and "takes about" in line for line in found.passed_over)


def test_a_named_model_is_cut_to_the_time_and_that_is_said(three: Path, chats: Path) -> None:
    found = propose(Goal(data=str(chats), model=LARGE, max_minutes=0.01), machine=MACHINES["80 GiB"])
    assert found.recipe.training.max_steps == found.plan.resolved.total_steps < 60
    assert any("minutes are enough for" in line for line in found.unmet)
    assert any(option.patch == {"training.max_steps": None} for option in found.alternatives)


def test_an_unknown_speed_is_no_kept_limit(tiny: Path, chats: Path) -> None:
    found = propose(Goal(data=str(chats), model=str(tiny), max_minutes=5), machine=MACHINES["CPU"])
    assert found.plan.seconds is None and "unknown" in found.unmet[0]
    trial = next(option for option in found.alternatives if option.kind == "trial")
    assert trial.patch == {"training.max_steps": 20} and trial.minutes is None


def test_alternatives_are_what_they_claim(three: Path, chats: Path) -> None:
    found = propose(Goal(data=str(chats)), machine=MACHINES["24 GiB"])
    now = found.plan
    assert now.seconds is not None
    kinds = {option.kind for option in found.alternatives}
    assert {"faster", "less memory"} <= kinds
    for option in found.alternatives:
        assert option.minutes is not None
        if option.kind == "faster":
            assert option.minutes < now.seconds / 60
        if option.kind == "less memory":
            assert option.memory_gib < now.memory.needed / GIB
