"""From a goal to a recipe: values have true reasons, limits hold, overrides win, nothing is hidden."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.cached_models import NOWHERE, cache_models
from support.command_line import whet
from support.plan_inputs import gpu, machine, write_chats
from support.tiny_models import build_tiny_model

from whet.engine import api
from whet.engine.errors import WhetError
from whet.engine.goals import Goal, Proposal, propose
from whet.engine.goals.draft import flat
from whet.engine.goals.rules import held_out_share
from whet.engine.recipe import Recipe
from whet.engine.recipe_files import load_recipe, patched

GIB = 2**30
SMALL, MIDDLE, LARGE = "Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B"

MACHINES = {
    "8 GiB": machine(gpu(8, capability=(8, 6))),
    "24 GiB": machine(gpu(24, capability=(8, 9))),
    "80 GiB": machine(gpu(80)),
    "CPU": machine(),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every test may share: whet's home with its caches, and a hub cache of three models."""
    folder = tmp_path_factory.mktemp("kept")
    cache_models(folder / "hub", [SMALL, MIDDLE, LARGE])
    return folder


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: Path) -> Path:
    """An offline machine with an empty hub cache; returns the cache."""
    monkeypatch.setenv("WHET_HOME", str(kept / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("WHET_OFFLINE", "1")
    return tmp_path / "hub"


@pytest.fixture
def three(bare: Path, monkeypatch: pytest.MonkeyPatch, kept: Path) -> Path:
    """A cache with Qwen3 of 0.6, 4 and 8 billion parameters."""
    monkeypatch.setenv("HF_HUB_CACHE", str(kept / "hub"))
    return kept / "hub"


WITHOUT_GGUF = {"hidden_act": "relu"}
"""What llama.cpp does not compute for any family here."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("goals") / "model", "llama")


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    return write_chats(tmp_path / "chats.jsonl", 1200)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def turns(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def sound(proposal: Proposal) -> None:
    """What holds of every proposal for sound data."""
    assert proposal.plan.blocked() == []
    assert [one for one in proposal.plan.findings if one.severity != "note"] == []
    assert proposal.plan.memory.fits
    assert proposal.plan.recipe == proposal.recipe == Recipe.model_validate(proposal.recipe.model_dump())
    values = proposal.recipe.model_dump(exclude_unset=True)
    for key in proposal.reasons:
        if key != "machine":
            section, _, name = key.partition(".")
            assert name in values[section], f"{key} has a reason and no value"
    said = {f"{section}.{name}" for section, inner in values.items() for name in inner}
    assert said == {key for key in proposal.reasons if key != "machine"}, "each value has a reason"
    commented = proposal.to_yaml()
    assert yaml.safe_load(commented) == yaml.safe_load(api.to_yaml(proposal.recipe))
    for option in proposal.alternatives:
        patched(proposal.recipe, option.patch)


# --- machines and priorities


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


# --- limits


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


# --- data


@pytest.mark.parametrize(
    ("rows", "share"), [(20, 0), (149, 0), (150, 0.1), (600, 0.083), (5000, 0.05), (100_000, 0.01)]
)
def test_few_rows_are_held_out_of_few_and_of_many(rows: int, share: float) -> None:
    assert held_out_share(rows) == pytest.approx(share, abs=0.001)


@pytest.mark.parametrize(("rows", "epochs", "accumulation"), [(160, 3, 2), (900, 3, 4), (3000, 2, 4)])
def test_passes_and_steps_follow_the_rows(
    tmp_path: Path, three: Path, rows: int, epochs: float, accumulation: int
) -> None:
    data = write_chats(tmp_path / "rows.jsonl", rows)
    found = propose(Goal(data=str(data), model=SMALL), machine=MACHINES["24 GiB"])
    assert found.recipe.training.epochs == epochs
    assert found.recipe.training.gradient_accumulation == accumulation
    assert found.plan.resolved.total_steps >= 60
    assert found.recipe.eval.early_stopping is not None and found.recipe.data.eval_fraction > 0


def test_a_file_for_evaluation_is_used_instead(tmp_path: Path, tiny: Path, chats: Path) -> None:
    held_out = write_rows(tmp_path / "eval.jsonl", (turns(f"Say {n}.", f"Here: {n}.") for n in range(60)))
    goal = Goal(data=str(chats), eval_data=str(held_out), model=str(tiny))
    found = propose(goal, machine=MACHINES["CPU"])
    sound(found)
    assert found.recipe.data.eval == str(held_out) and found.recipe.data.eval_fraction == 0
    report = found.plan.data.report
    assert report.eval is not None and report.eval.rows == 60 and report.train.rows == 1200


def test_the_training_file_for_evaluation_is_mended(tiny: Path, chats: Path) -> None:
    goal = Goal(data=str(chats), eval_data=str(chats), model=str(tiny))
    found = propose(goal, machine=MACHINES["CPU"])
    assert found.recipe.data.eval is None and found.recipe.data.eval_fraction > 0
    assert any("held-out rows are trained on" in line for line in found.changed)


def test_samples_are_questions_of_the_data(tiny: Path, chats: Path) -> None:
    found = propose(Goal(data=str(chats), model=str(tiny)), machine=MACHINES["CPU"])
    assert found.recipe.sampling.prompts == [f"What is {n} plus {n + 1}?" for n in range(3)]


def test_alpaca_rows(tmp_path: Path, tiny: Path) -> None:
    rows = ({"instruction": f"Count to {n}.", "input": "", "output": f"{n}!"} for n in range(400))
    found = propose(
        Goal(data=str(write_rows(tmp_path / "a.jsonl", rows)), model=str(tiny)), machine=machine()
    )
    sound(found)
    assert found.recipe.sampling.prompts[0] == "Count to 0."


def test_columns_of_unknown_names_are_named_in_the_recipe(tmp_path: Path, tiny: Path) -> None:
    rows = ({"question": f"How much is {n}?", "answer": f"It is {n}."} for n in range(400))
    found = propose(
        Goal(data=str(write_rows(tmp_path / "q.jsonl", rows)), model=str(tiny)), machine=machine()
    )
    assert found.plan.blocked() == []
    assert found.recipe.data.format == "prompt_completion"
    assert found.recipe.data.columns == {"prompt": "question", "completion": "answer"}
    assert found.reasons["data.format"].startswith("D15") and found.recipe.sampling.prompts


def test_plain_text_takes_the_values_for_text(tmp_path: Path, bare: Path) -> None:
    cache_models(bare, [SMALL, "Qwen/Qwen3-0.6B-Base"])
    rows = (
        {"text": f"Chapter {n}. " + "It was a dark and stormy night, and it rained. " * 20}
        for n in range(300)
    )
    data = write_rows(tmp_path / "texts.jsonl", rows)
    found = propose(Goal(data=str(data)), machine=MACHINES["24 GiB"])
    sound(found)
    like = load_recipe("continued-pretraining")
    assert found.recipe.model.name in (SMALL, "Qwen/Qwen3-0.6B-Base")
    assert found.recipe.method.supervise == "all" and found.recipe.method.packing
    assert found.recipe.training.learning_rate == like.training.learning_rate
    assert found.recipe.adapter.train_embeddings and like.adapter.train_embeddings
    assert found.plan.resolved.embedding_learning_rate == like.training.embedding_learning_rate
    assert found.recipe.sampling.prompts == []
    light = propose(Goal(data=str(data), priority="memory"), machine=MACHINES["24 GiB"])
    assert not light.recipe.adapter.train_embeddings


def test_long_rows_are_kept_up_to_the_99th_percentile(tmp_path: Path, three: Path) -> None:
    rows = [turns(f"Tell me of {n}.", f"word{n} " * (1500 if n % 20 == 0 else 20)) for n in range(400)]
    found = propose(
        Goal(data=str(write_rows(tmp_path / "long.jsonl", rows)), model=SMALL), machine=MACHINES["24 GiB"]
    )
    lengths = found.plan.data.report.train.length
    assert lengths.p99 > 2048
    assert lengths.p99 <= found.recipe.model.max_length < lengths.p99 + 256
    assert found.plan.memory.fits


def test_a_model_of_few_positions_limits_the_length(tmp_path: Path, tiny: Path) -> None:
    rows = [turns(f"Tell me of {n}.", f"word{n} " * (400 if n == 7 else 5)) for n in range(400)]
    data = write_rows(tmp_path / "long.jsonl", rows)
    found = propose(Goal(data=str(data), model=str(tiny)), machine=machine())
    assert found.recipe.model.max_length == 512 and "512 positions" in found.reasons["model.max_length"]


def test_bad_data_are_mended_and_what_remains_is_said(tmp_path: Path, three: Path) -> None:
    rows = [turns(f"Say {n}.", f"Well: {n}.") for n in range(300)]
    rows += [turns(f"Say nothing of {n}.", "") for n in range(30)] + rows[:60]
    data = tmp_path / "bad.jsonl"
    write_rows(data, rows)
    data.write_text(data.read_text() + "{broken\n")
    found = propose(Goal(data=str(data), model=SMALL), machine=MACHINES["24 GiB"])
    assert found.plan.blocked() == []
    assert found.recipe.data.bad_rows == "skip"
    assert {"duplicates", "empty"} <= set(found.recipe.data.drop)
    report = found.plan.data.report
    assert f"{report.train.token_rows:,} rows" in found.reasons["training.epochs"]
    assert report.train.duplicates == report.train.empty_replies == 0
    assert any("repeat an earlier row" in line for line in found.changed)
    assert found.reasons["data.drop"].startswith("D")


def test_too_few_rows_stay_an_error(tmp_path: Path, tiny: Path) -> None:
    data = write_chats(tmp_path / "few.jsonl", 20)
    found = propose(Goal(data=str(data), model=str(tiny)), machine=machine())
    assert [finding.id for finding in found.plan.blocked()] == ["D16"] and found.recipe.accept == []
    assert any(line.startswith("D16") for line in found.unmet)
    assert found.recipe.data.eval_fraction == 0


def test_a_base_model_gets_a_template(tmp_path: Path, chats: Path) -> None:
    base = build_tiny_model(tmp_path / "base", "llama", chat=False)
    found = propose(Goal(data=str(chats), model=str(base)), machine=machine())
    assert found.plan.blocked() == []
    assert found.recipe.data.template == found.plan.resolved.template is not None
    assert found.reasons["data.template"].startswith("D09")


# --- overrides


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


# --- doors


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
