"""Two processes over gloo train as one does: the same rows in the same steps, the same losses (CPU, fp32)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.rank_recipes import compared, embedded, sorted_texts
from support.ranks import assert_alike, drive
from support.tiny_embedders import build_embedder, save_transformer
from support.tiny_models import build_tiny_model
from support.tiny_runs import tiny_recipe, write_chat_rows

ONE, TWO = [{"ranks": 1}], [{"ranks": 2}]
LEFT_TWICE = [{"ranks": 2, "stop": 3}, {"ranks": 2, "stop_evaluating": 6}, *TWO]

# 22 rows in steps of four: the sixth step of an epoch has one micro-batch of two, which only one process has.
TRAINING = {"max_steps": 7, "save_every": 7, "keep_checkpoints": 1}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every run here saw; one process of this machine pays for all imports."""
    folder = tmp_path_factory.mktemp("ranks")
    models = {
        "fast": build_tiny_model(folder / "llama"),
        "plain": build_tiny_model(folder / "stablelm", "stablelm"),  # type: ignore[arg-type]
    }
    rows = write_chat_rows(folder / "rows.jsonl", 22)
    held_out = write_chat_rows(folder / "held_out.jsonl", 5, seed=1)

    def recipe(path: str, **sections: Any) -> dict[str, Any]:
        changed: dict[str, Any] = {
            "data": {"eval": str(held_out)},
            "eval": {"every": 6, "batch_size": 2},
            "adapter": {"dropout": 0.0},
            "training": TRAINING,
        }
        return tiny_recipe(models[path], rows, **changed | sections).model_dump(mode="json")

    packing = {"method": {"packing": True}, "model": {"max_length": 64}}
    dropping = {"adapter": {"dropout": 0.1}, "sampling": {"prompts": ["Why?"], "max_new_tokens": 2}}
    runs: dict[str, Any] = {
        "fast, one": (recipe("fast"), ONE),
        "fast, two": (recipe("fast"), TWO),
        "fast, two then one": (recipe("fast"), [{"ranks": 2, "stop": 3}, *ONE]),
        "fast, one then two": (recipe("fast"), [{"ranks": 1, "stop": 3}, *TWO]),
        "plain, one": (recipe("plain"), ONE),
        "plain, two": (recipe("plain"), TWO),
        "packed, one": (recipe("fast", **packing), ONE),
        "packed, two": (recipe("fast", **packing), TWO),
        "dropping, two": (recipe("fast", **dropping), TWO),
        "dropping, two then two": (recipe("fast", **dropping), LEFT_TWICE),
    }
    bert = save_transformer(folder / "bert", "bert")
    others = {
        "preference": compared(folder, models["fast"]),
        "classification": sorted_texts(folder, bert),
        "embedding": embedded(folder, build_embedder(folder / "embedder", "bert")),
    }
    for method, wanted in others.items():
        runs |= {f"{method}, one": (wanted, ONE), f"{method}, two": (wanted, TWO)}
    return drive(folder, runs)


@pytest.mark.parametrize("path", ["fast", "plain", "packed", "preference", "classification", "embedding"])
def test_two_processes_have_the_losses_of_one(seen: dict[str, Any], path: str) -> None:
    one, two = seen[f"{path}, one"], seen[f"{path}, two"]
    assert_alike(one, two)
    assert len(two["steps"]) == TRAINING["max_steps"]
    assert len({loss for _, loss, *_ in two["steps"]}) == TRAINING["max_steps"]


@pytest.mark.parametrize("change", ["two then one", "one then two"])
def test_resuming_with_another_number_of_processes_goes_on_with_the_curve(
    seen: dict[str, Any], change: str
) -> None:
    resumed = seen[f"fast, {change}"]
    assert_alike(seen["fast, one"], resumed)
    said = [detail for detail in resumed["said"] if "resuming" in detail]
    assert len(said) == 1 and "random numbers of their own" in said[0]


def test_resuming_with_the_same_processes_is_bit_identical(seen: dict[str, Any]) -> None:
    """It was left within an epoch, and in the middle of an evaluation, which all processes leave together."""
    whole, resumed = seen["dropping, two"], seen["dropping, two then two"]
    assert whole["steps"] == resumed["steps"]
    assert whole["evals"] == resumed["evals"]
    assert whole["weights"] == resumed["weights"] and len(whole["weights"]) == 1
    assert whole["checkpoints"] == resumed["checkpoints"]


def test_dropout_was_at_work_there(seen: dict[str, Any]) -> None:
    dropping, fast = seen["dropping, two"]["steps"], seen["fast, two"]["steps"]
    assert [step[3:] for step in dropping] == [step[3:] for step in fast]
    # Until the second step's update B is zero, and then nothing is dropped that counts: warm-up begins at 0.
    assert all(one[1] != other[1] for one, other in zip(dropping[2:], fast[2:], strict=True))


def test_samples_are_made_once(seen: dict[str, Any]) -> None:
    # One prompt, answered before the first step and at both evaluations.
    assert seen["dropping, two"]["samples"] == 3


@pytest.mark.slow  # three processes that each import everything: `make slow`
def test_ranks_that_import_by_themselves_see_what_forks_see(seen: dict[str, Any], tmp_path: Path) -> None:
    """As the tests on GPUs start them."""
    model, rows = build_tiny_model(tmp_path / "llama"), write_chat_rows(tmp_path / "rows.jsonl", 22)
    sections: dict[str, Any] = {"adapter": {"dropout": 0.0}, "training": TRAINING}
    recipe = tiny_recipe(model, rows, **sections).model_dump(mode="json")
    found = drive(tmp_path, {"two, one": (recipe, [{"ranks": 2, "stop": 3}, *ONE])}, prepared=True)
    steps = found["two, one"]["steps"]
    forked = seen["fast, two then one"]["steps"]
    assert [step[1] for step in steps] == pytest.approx([step[1] for step in forked], rel=1e-5)
    said = (tmp_path / "ranks.log").read_text()
    assert said.count("is ready for sft") == 3 and "two, one: exit codes [0]" in said
