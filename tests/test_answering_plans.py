"""Plans of reinforcement learning: a micro-batch of prompts with their answers, and the writing of these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.plan_inputs import gpu, machine, model_facts, recipe, report, split

from whet.engine.alternatives import find_alternatives
from whet.engine.data.inspection import DataReport, Lengths
from whet.engine.fitting import fit
from whet.engine.models.facts import ModelFacts
from whet.engine.models.memory import Memory, estimate_memory
from whet.engine.models.writing_memory import CACHE_SHARE, writing_bytes
from whet.engine.recipe import Recipe
from whet.engine.resolve import Resolved, resolve

REWARDS = {"kind": "grpo", "rewards": ["exact_answer"], "max_completion_length": 384}


@pytest.fixture
def facts(tmp_path: Path) -> ModelFacts:
    return model_facts(tmp_path / "8b")


def prompts() -> DataReport:
    """A thousand of 100 tokens, the longest of 128."""
    lengths = Lengths(p50=100, p95=110, p99=120, max=128)
    return report(split(rows=1000, token_rows=1000, tokens=100_000, length=lengths))


def asked(**patch: Any) -> Recipe:
    method = REWARDS | patch.pop("method", {})
    usual = {"training__batch_size": 16, "training__gradient_accumulation": 2, "adapter__dropout": 0.0}
    return recipe(method=method, **(usual | patch))


def fitted(facts: ModelFacts, wanted: Recipe, memory: float = 80) -> tuple[Resolved, Memory, Memory]:
    """Settings, what they need, and what transformers' own layers would with the same."""
    on, data = machine(gpu(memory)), prompts()
    resolved, _ = resolve(wanted, facts, on, data, 1000)
    plain = estimate_memory(facts, wanted.adapter, resolved, data, on)
    resolved, needed, _ = fit(wanted, resolved, facts, data, on)
    return resolved, needed, plain


def test_a_micro_batch_of_answers_goes_through_whole(facts: ModelFacts) -> None:
    large, memory, plain = fitted(facts, asked())
    assert large.schedule is not None and large.schedule.budget == 16 * (128 + 384)
    assert large.schedule.micro_batches == large.gradient_accumulation == 2
    assert large.schedule.step_tokens == 2 * 16 * (100 + 384)
    assert large.schedule.step_seconds is None  # nothing is known of the writing
    assert not large.schedule.recomputes and memory.peak < 0.8 * plain.peak
    small, memory, _ = fitted(facts, asked(), 21)
    assert small.schedule is not None and small.schedule.recomputes and small.gradient_checkpointing
    assert memory.fits
    held = asked(training__gradient_checkpointing="off")
    kept, memory, _ = fitted(facts, held, 21)
    assert kept.schedule is not None and not kept.schedule.recomputes and not memory.fits


def test_a_reference_reads_before_the_step_and_takes_nothing_beside_it(facts: ModelFacts) -> None:
    _, without, _ = fitted(facts, asked())
    _, beside, _ = fitted(facts, asked(method={"beta": 0.1}))
    assert beside == without


def test_where_all_weights_train_the_plain_formula_stands(facts: ModelFacts) -> None:
    whole = asked(adapter__kind="none", method={"beta": 0.1}, training__gradient_checkpointing="off")
    resolved, memory, plain = fitted(facts, whole)
    assert resolved.schedule is None and resolved.second_copy and memory == plain


def test_writing_many_answers_at_once_can_be_the_most(facts: ModelFacts) -> None:
    many = asked(training__batch_size=1, training__gradient_accumulation=256)
    resolved, memory, _ = fitted(facts, many)
    parts = memory.components
    assert parts["activations"] + parts["passing"] + parts["loss"] == writing_bytes(facts, resolved)
    assert memory.peak == sum(parts.values())
    fewer, step, _ = fitted(facts, asked(training__batch_size=1, training__gradient_accumulation=8))
    held = step.components["activations"] + step.components["passing"] + step.components["loss"]
    assert fewer.answers == 8 and held > writing_bytes(facts, fewer)


@pytest.mark.parametrize(("kind", "gigabytes"), [("lora", 40), ("none", 120)])
def test_answers_are_written_in_as_few_turns_as_fit(facts: ModelFacts, kind: str, gigabytes: float) -> None:
    """On the fast path, and where all weights train on transformers' own layers."""
    many = asked(adapter__kind=kind, training__batch_size=1, training__gradient_accumulation=768)
    roomy, all_at_once, _ = fitted(facts, many, 400)
    assert roomy.turns == 1 and all_at_once.peak > gigabytes * 10**9
    resolved, memory, _ = fitted(facts, many, gigabytes)
    assert (resolved.schedule is not None) == (kind == "lora")
    assert memory.fits and 1 < resolved.turns < 768 and 768 % resolved.turns == 0
    fewer = max(turns for turns in range(1, resolved.turns) if 768 % turns == 0)
    more = writing_bytes(facts, resolved.model_copy(update={"turns": fewer})) - writing_bytes(facts, resolved)
    assert memory.peak + more > (CACHE_SHARE if kind == "lora" else 1) * memory.capacity
    written = asked(
        training__gradient_accumulation=768, training__batch_size=1, method={"generation": "vllm"}
    )
    assert fitted(facts, written, gigabytes)[0].turns == 1


@pytest.mark.parametrize("gigabytes", [24, 36, 40, 44, 48])
def test_the_fast_path_has_room_for_the_cache_of_a_turn(facts: ModelFacts, gigabytes: float) -> None:
    """Its places are rounded up, and it takes a share of what is free."""
    many = asked(
        training__batch_size=1, training__gradient_accumulation=768, method={"max_completion_length": 392}
    )
    resolved, memory, _ = fitted(facts, many, gigabytes)
    assert resolved.longest == 520 and resolved.turns > 1 and memory.fits
    step = sum(memory.components[name] for name in ("activations", "passing", "loss"))
    cached = 768 // resolved.turns * 768 * facts.layers * 2 * facts.kv_heads * facts.head_dim * 2
    assert cached <= CACHE_SHARE * (memory.capacity - (memory.peak - step))


def test_where_nothing_fits_the_writing_is_not_what_is_missing(facts: ModelFacts) -> None:
    many = asked(training__batch_size=1, training__gradient_accumulation=768)
    nowhere, memory, _ = fitted(facts, many, 12)
    few, least, _ = fitted(facts, asked(training__batch_size=1, training__gradient_accumulation=8), 12)
    assert not memory.fits and memory.peak == least.peak and few.answers == 8
    assert writing_bytes(facts, nowhere.model_copy(update={"turns": nowhere.turns // 2})) > writing_bytes(
        facts, nowhere
    )


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_ways_out_leave_room_for_the_answers(facts: ModelFacts, kind: str) -> None:
    wanted = asked(
        adapter__kind=kind, training__batch_size=64, training__gradient_accumulation=1,
        method={"steps_per_generation": 2}, training__gradient_checkpointing="off",
    )  # fmt: skip
    on, data = machine(gpu(24)), prompts()
    resolved, _ = resolve(wanted, facts, on, data, 1000)
    resolved, memory, _ = fit(wanted, resolved, facts, data, on)
    assert not memory.fits and (resolved.schedule is not None) == (kind == "lora")
    others = find_alternatives(wanted, resolved, facts, on, data, memory)
    smaller = [one.patch for one in others if "training.batch_size" in one.patch]
    assert min(patch["training.batch_size"] for patch in smaller) == 1
    assert {patch["training.batch_size"] * patch["method.steps_per_generation"] for patch in smaller} == {
        2 * 64
    }
    assert all(one.patch.get("model.max_length", 2048) > 384 for one in others)
    assert kind == "none" or any(one.memory.fits for one in others)
