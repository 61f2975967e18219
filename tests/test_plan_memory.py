"""What a plan says about memory and time: the schedule, what to change when nothing fits, the longest row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.plan_inputs import GIB, gpu, machine, model_facts, plan_for, recipe, report
from support.tiny_models import build_tiny_model

from whet.engine.alternatives import find_alternatives
from whet.engine.models.facts import ModelFacts
from whet.engine.models.memory import estimate_memory
from whet.engine.plan import Plan, make_plan
from whet.engine.rates import correction, record_rate
from whet.engine.recipe import Recipe
from whet.engine.recipe_files import patched
from whet.engine.resolve import Resolved, resolve


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("plan") / "model", "llama")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def llama_8b(tmp_path: Path) -> ModelFacts:
    return model_facts(tmp_path / "llama")


def resolved(wanted: Recipe, facts: ModelFacts, on: Any) -> Resolved:
    return resolve(wanted, facts, on, report(), 1000)[0]


def test_the_schedule_recomputes_only_when_needed(tiny_model: Path, tmp_path: Path) -> None:
    key = "training.gradient_checkpointing"
    large = plan_for(tiny_model, tmp_path, 80)
    assert large.resolved.schedule is not None
    assert not large.resolved.gradient_checkpointing and large.origins[key].startswith("planner: off")
    assert large.resolved.schedule.budget == 8 * large.resolved.longest
    small = plan_for(tiny_model, tmp_path, 21)
    assert small.resolved.schedule is not None
    assert small.resolved.gradient_checkpointing and small.origins[key].startswith("planner: on")
    assert "recompute" in small.origins[key]
    assert small.memory.fits and small.memory.peak < large.memory.peak
    assert small.resolved.rows_per_step == large.resolved.rows_per_step
    assert "L11" not in {finding.id for finding in small.findings}
    kept = plan_for(tiny_model, tmp_path, 17, training__gradient_checkpointing="off")
    assert not kept.resolved.gradient_checkpointing and key not in {
        name for name, origin in kept.origins.items() if origin.startswith("planner")
    }
    assert "L11" in {finding.id for finding in kept.blocked()}


def test_off_the_fast_path_checkpointing_comes_on_only_when_needed(tiny_model: Path, tmp_path: Path) -> None:
    key, dora = "training.gradient_checkpointing", {"adapter__kind": "dora"}
    large = plan_for(tiny_model, tmp_path, 80, **dora)
    assert large.resolved.schedule is None and large.longest_sequence is None
    assert not large.resolved.gradient_checkpointing and large.origins[key].startswith("planner: off")
    small = plan_for(tiny_model, tmp_path, 24, **dora)
    assert small.resolved.gradient_checkpointing and small.origins[key].startswith("planner: on")
    assert small.memory.fits and small.memory.peak < large.memory.peak


def followed(
    plan: Plan, patch: dict[str, Any], tiny_model: Path, tmp_path: Path, gib: float, **asked: Any
) -> Plan:
    changes = {key.replace(".", "__"): value for key, value in patch.items()}
    return plan_for(tiny_model, tmp_path, gib, **(asked | changes))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_what_does_not_fit_comes_with_ways_that_do(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    asked = {"training__batch_size": 4, "training__gradient_accumulation": 2, "adapter__kind": kind}
    plan = plan_for(tiny_model, tmp_path, 10, **asked)
    finding = next(finding for finding in plan.blocked() if finding.id == "L11")
    assert not plan.memory.fits
    assert plan.alternatives and plan.alternatives[0].memory.fits
    assert finding.fix is not None and finding.fix.patch == plan.alternatives[0].patch
    for one in plan.alternatives:
        if "model.max_length" in one.patch:
            continue  # shorter rows have another share of supervised tokens
        then = followed(plan, one.patch, tiny_model, tmp_path, 10, **asked)
        assert then.memory == one.memory  # the promise is kept
        assert ("L11" in {finding.id for finding in then.findings}) != one.memory.fits
        assert then.resolved.rows_per_step == 8


def test_a_rank_or_a_length_that_fits_is_named(tiny_model: Path, tmp_path: Path) -> None:
    """The largest rank as a power of two, and rows cut at the longest that fits."""
    wide = {"adapter__rank": 1024, "training__gradient_checkpointing": "off"}
    plan = plan_for(tiny_model, tmp_path, 19, **wide)
    patches = [one.patch for one in plan.alternatives]
    ranks = [patch["adapter.rank"] for patch in patches if "adapter.rank" in patch]
    assert ranks and all(4 <= rank < 1024 and rank & (rank - 1) == 0 for rank in ranks)
    assert {"training.gradient_checkpointing": "auto"} in patches
    tight = plan_for(tiny_model, tmp_path, 17.2)
    lengths = [one.patch["model.max_length"] for one in tight.alternatives if "model.max_length" in one.patch]
    assert lengths and all(256 <= length < tight.resolved.longest and length % 256 == 0 for length in lengths)


def test_the_longest_row_is_said_for_this_and_other_gpus(tiny_model: Path, tmp_path: Path) -> None:
    plan = plan_for(tiny_model, tmp_path, 48, model__precision="nf4")
    table = plan.longest_by_memory
    assert list(table) == [24, 48, 80, 141] and list(table.values()) == sorted(table.values())
    assert plan.longest_sequence is not None and plan.longest_sequence > table[24] > 2048
    assert table[141] == 131072  # the model's own positions


def test_the_longest_row_leaves_room_for_what_several_gpus_exchange(tiny_model: Path, tmp_path: Path) -> None:
    alone = plan_for(tiny_model, tmp_path, 24, model__precision="nf4")
    both = [gpu(24).model_copy(update={"index": one, "uuid": f"GPU-{one}"}) for one in range(2)]
    copies = make_plan(patched(alone.recipe, {"hardware.gpus": 2}), machine=machine(*both))
    assert copies.resolved.strategy == "ddp"
    assert copies.longest_sequence is not None and alone.longest_sequence is not None
    assert copies.longest_sequence < alone.longest_sequence
    assert copies.longest_by_memory[24] < alone.longest_by_memory[24]


def test_time_is_predicted_where_the_gpu_is_known(tiny_model: Path, tmp_path: Path) -> None:
    """By the time model before any run; runs of other work correct it, the same work's rate replaces it."""
    plan = plan_for(tiny_model, tmp_path, 80)
    schedule = plan.resolved.schedule
    assert schedule is not None and schedule.tokens_per_second is not None
    assert plan.seconds == pytest.approx(plan.total_tokens / schedule.tokens_per_second, rel=0.01)
    assert plan.seconds is not None and not plan.seconds_measured
    other = plan_for(tiny_model, tmp_path, 80, adapter__rank=32)
    assert other.resolved.schedule is not None and other.resolved.schedule.tokens_per_second is not None
    record_rate(other.model, other.resolved, other.resolved.schedule.tokens_per_second / 1.5)
    slower = plan_for(tiny_model, tmp_path, 80)
    assert slower.seconds == pytest.approx(1.5 * plan.seconds, rel=0.01) and slower.id == plan.id
    assert correction(slower.resolved) == pytest.approx(1.5, rel=1e-3)
    record_rate(plan.model, plan.resolved, 123.0)
    measured = plan_for(tiny_model, tmp_path, 80)
    assert measured.seconds_measured and measured.seconds == pytest.approx(plan.total_tokens / 123.0, abs=0.1)


def test_held_up_runs_correct_nothing(tiny_model: Path, tmp_path: Path) -> None:
    plan = plan_for(tiny_model, tmp_path, 80)
    assert plan.resolved.schedule is not None and plan.resolved.schedule.tokens_per_second is not None
    record_rate(plan.model, plan.resolved, plan.resolved.schedule.tokens_per_second / 10)
    assert correction(plan.resolved) == 1.0
    cpu = plan.resolved.model_copy(update={"machine": "another"})
    assert correction(cpu) == 1.0


def test_off_the_fast_path_smaller_batches_keep_the_step(llama_8b: ModelFacts) -> None:
    wanted = recipe(training__batch_size=8, training__gradient_accumulation=3, adapter__kind="dora")
    on = machine(gpu(8))
    found = resolved(wanted, llama_8b, on)
    memory = estimate_memory(llama_8b, wanted.adapter, found, report(), on)
    others = find_alternatives(wanted, found, llama_8b, on, report(), memory)
    patches = [one.patch for one in others if "training.batch_size" in one.patch]
    assert {patch["training.batch_size"] for patch in patches} == {4, 2, 1}
    for patch in patches:
        assert patch["training.batch_size"] * patch["training.gradient_accumulation"] == 24
    assert all(one.memory.peak < memory.peak for one in others)
    assert any(one.patch == {"model.precision": "nf4"} for one in others)
    assert any("model.max_length" in one.patch for one in others)
    fits = [one.memory.fits for one in others]
    assert fits == sorted(fits, reverse=True)


def test_full_fine_tuning_offers_an_adapter(llama_8b: ModelFacts) -> None:
    wanted, on = recipe(adapter__kind="none"), machine(gpu(80))
    found = resolved(wanted, llama_8b, on)
    memory = estimate_memory(llama_8b, wanted.adapter, found, report(), on)
    assert memory.needed > 80 * GIB  # 4 + 4 + 2 bytes a parameter
    others = find_alternatives(wanted, found, llama_8b, on, report(), memory)
    assert others[0].memory.fits and others[0].patch["adapter.kind"] == "lora"
