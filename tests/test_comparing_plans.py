"""Plans of losses that compare rows: a micro-batch goes through whole, with its reference, without logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.plan_inputs import GIB, gpu, machine, model_facts, recipe, report, split

from whet.engine.alternatives import find_alternatives
from whet.engine.data.formats import FormatGuess
from whet.engine.data.inspection import DataReport, Lengths
from whet.engine.fitting import fit
from whet.engine.models.facts import ModelFacts
from whet.engine.models.memory import Memory
from whet.engine.rates import rate_key
from whet.engine.resolve import Resolved, resolve


@pytest.fixture
def facts(tmp_path: Path) -> ModelFacts:
    return model_facts(tmp_path / "8b")


def answers(layout: str = "preference") -> DataReport:
    """Rows whose texts have 512 tokens, half of them the answer."""
    texts = 2 if layout == "preference" else 1
    train = split(
        rows=1000, token_rows=1000, tokens=512 * texts * 1000, supervised_tokens=256 * texts * 1000,
        length=Lengths(p50=512, p95=512, p99=512, max=512),
    )  # fmt: skip
    guess = FormatGuess(format=None, other=layout, confidence=1, reason="all rows fit")
    return report(train, formats={"rows.jsonl": guess}, texts_per_row=texts)


def fitted(
    facts: ModelFacts, memory: float = 80, layout: str = "preference", **patch: Any
) -> tuple[Resolved, Memory]:
    method = {"kind": "preference"} | patch.pop("method", {})
    wanted = recipe(
        **{"method": method, "training__batch_size": 8, "training__gradient_accumulation": 2} | patch
    )
    on, data = machine(gpu(memory)), answers(layout)
    resolved, _ = resolve(wanted, facts, on, data, 1000)
    resolved, needed, _ = fit(wanted, resolved, facts, data, on)
    return resolved, needed


def test_a_micro_batch_of_pairs_goes_through_whole(facts: ModelFacts) -> None:
    large, _ = fitted(facts)
    assert large.schedule is not None and large.schedule.budget == 8 * 2 * 512
    assert not large.schedule.recomputes
    assert large.schedule.micro_batches == large.gradient_accumulation == 2
    assert large.schedule.step_tokens == 2 * 8 * 2 * 512
    small, memory = fitted(facts, 21)
    assert small.schedule is not None and small.schedule.budget == large.schedule.budget
    assert small.schedule.recomputes and memory.fits
    sft = small.model_copy(update={"method": "sft"})
    assert rate_key(facts, small) != rate_key(facts, sft)


def test_the_reference_takes_time_and_little_memory_and_nothing_holds_all_logits(facts: ModelFacts) -> None:
    kinds = {"dpo": {"loss": "dpo"}, "orpo": {"loss": "orpo"}, "reward": {"kind": "reward"}}
    found = {name: fitted(facts, method=method) for name, method in kinds.items()}
    found["kto"] = fitted(facts, layout="ratings", training__batch_size=16)
    schedules = {name: resolved.schedule for name, (resolved, _) in found.items()}
    peaks = {name: schedule.peak_bytes for name, schedule in schedules.items() if schedule is not None}
    assert len(peaks) == 4
    assert peaks["reward"] <= peaks["orpo"] <= peaks["dpo"] == peaks["kto"] < peaks["orpo"] + GIB
    logits = 8 * 2 * 256 * 128256 * 2  # of the answers alone, in bf16
    assert found["dpo"][1].components["loss"] + found["dpo"][1].components["passing"] < logits
    assert found["reward"][1].components["loss"] < GIB // 2
    bases = [found[name][1].components["base"] for name in ("orpo", "reward")]
    assert bases[0] - bases[1] == 128256 * 4096 * 2  # a score in place of the output head


def test_without_room_smaller_micro_batches_are_named(facts: ModelFacts) -> None:
    for layout, fewest in (("preference", 1), ("ratings", 2)):
        wanted = recipe(method={"kind": "preference"}, training__batch_size=64)
        on, data = machine(gpu(22)), answers(layout)
        resolved, _ = resolve(wanted, facts, on, data, 1000)
        resolved, memory, _ = fit(wanted, resolved, facts, data, on)
        assert layout == "ratings" or not memory.fits
        others = find_alternatives(wanted, resolved, facts, on, data, memory)
        batches = [one.patch["training.batch_size"] for one in others if "training.batch_size" in one.patch]
        assert min(batches) == fewest
        assert any(one.memory.fits for one in others)
