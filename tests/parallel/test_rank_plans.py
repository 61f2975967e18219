"""Plans on several GPUs: settings, memory by arithmetic, time, findings and ways out. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.plan_inputs import GIB, gpu, machine, model_facts, plan_facts, recipe, report, split

from whet.engine.alternatives import find_alternatives
from whet.engine.calibration import ceilings_of
from whet.engine.checks import run_checks
from whet.engine.data.inspection import Lengths
from whet.engine.hardware import Machine
from whet.engine.models.facts import ModelFacts
from whet.engine.models.memory import estimate_memory, weight_copies
from whet.engine.parallel.fitting import RankPlan, Sharing, deepspeed_of, fit_ranks
from whet.engine.parallel.rank_memory import (
    NCCL_BUFFERS,
    PASSING,
    STAGES,
    copied,
    exchange_seconds,
    sharded,
)
from whet.engine.rates import correction, known_rate, predicted_rate, record_rate
from whet.engine.recipe import Recipe
from whet.engine.resolve import resolve


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def llama_8b(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    return model_facts(tmp_path_factory.mktemp("ranks") / "llama")


def gpus(count: int, gib: float, **changes: Any) -> Machine:
    each = [
        gpu(gib).model_copy(update={"index": one, "uuid": f"GPU-{one}", **changes}) for one in range(count)
    ]
    return machine(*each, ram_gib=512)


def planned(facts: ModelFacts, on: Machine, wanted: Recipe | None = None, **patch: Any) -> RankPlan:
    wanted = wanted or recipe(**patch)
    resolved, _ = resolve(wanted, facts, on, report(), 5000)
    return fit_ranks(wanted, resolved, facts, report(), on)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_auto_is_one_gpu_where_one_holds_it(llama_8b: ModelFacts, count: int) -> None:
    plan, alone = planned(llama_8b, gpus(count, 80)), planned(llama_8b, gpus(1, 80))
    assert (plan.resolved, plan.memory) == (alone.resolved, alone.memory)
    assert plan.resolved.strategy == "single" and plan.exchange_seconds is None
    said = plan.reasons.get("hardware.gpus", "")  # of one GPU there is nothing to say
    assert ("hardware.gpus=" in said) == ("of its time" in said) == (count > 1)


def test_the_step_stays_the_same_on_every_number(llama_8b: ModelFacts) -> None:
    alone = planned(llama_8b, gpus(8, 80)).resolved
    for ranks, share in ((2, (2, 2)), (4, (2, 1)), (8, (1, 1))):
        plan = planned(llama_8b, gpus(8, 80), hardware__gpus=ranks)
        mine = plan.resolved
        assert (mine.strategy, mine.ranks) == ("ddp", ranks)
        assert (mine.batch_size, mine.gradient_accumulation) == share
        assert mine.rows_per_step == alone.rows_per_step == 8 and mine.rows_per_rank == 8 // ranks
        assert (mine.total_steps, mine.steps_per_epoch) == (alone.total_steps, alone.steps_per_epoch)
        assert "8 rows" in plan.reasons["training.gradient_accumulation"]
        assert ("training.batch_size" in plan.reasons) == (ranks == 8)
        assert "hardware.gpus" not in plan.reasons  # asked for


def test_a_copy_on_the_fast_path_needs_what_one_gpu_needs_for_its_rows(llama_8b: ModelFacts) -> None:
    plan = planned(llama_8b, gpus(4, 80), hardware__gpus=4)
    same_rows = planned(llama_8b, gpus(1, 80), training__gradient_accumulation=1)
    assert plan.resolved.schedule is not None and same_rows.resolved.schedule is not None
    assert plan.memory.components == {**same_rows.memory.components, "exchange": NCCL_BUFFERS}


def test_what_nccl_holds_is_kept_free_for_it(llama_8b: ModelFacts) -> None:
    """A schedule that fills the memory leaves that much less to activations than one GPU's own."""
    filling: dict[str, Any] = {"training__gradient_accumulation": 64, "training__batch_size": 8}
    sizes = (19.5, 20.0, 20.5, 21.0)
    fitted = [planned(llama_8b, gpus(2, gib), hardware__gpus=2, **filling).memory for gib in sizes]
    assert all(memory.fits and memory.components["exchange"] == NCCL_BUFFERS for memory in fitted)
    assert any(memory.needed + 2 * NCCL_BUFFERS > memory.capacity for memory in fitted)  # to the last


def test_the_plan_of_shares_covers_what_the_driver_saw_of_them(llama_8b: ModelFacts) -> None:
    """Of benchmarks/results/several-gpus-h200-2026-11-30.md: 8B in bf16, 16 rows of 2,048 tokens a step, two
    GPUs. The allocator's peak was 12.65 GiB, and the driver counted 3.84 GiB beside it."""
    wanted = recipe(
        adapter__rank=16, adapter__dropout=0.0, training__batch_size=2, training__gradient_accumulation=8,
        hardware__gpus=2,
    )  # fmt: skip
    rows = split(
        rows=64, token_rows=64, tokens=64 * 2048, supervised_tokens=64 * 2047,
        length=Lengths(p50=2048, p95=2048, p99=2048, max=2048),
    )  # fmt: skip
    on, text = gpus(2, 16), report(rows)
    resolved, _ = resolve(wanted, llama_8b, on, text, 64)
    plan = fit_ranks(wanted, resolved, llama_8b, text, on)
    assert plan.resolved.strategy == "fsdp"
    assert 12.65 + 3.84 <= plan.memory.needed / GIB < 1.1 * (12.65 + 3.84)


def test_gradients_laid_end_to_end_count_beyond_what_is_gone_by_then(llama_8b: ModelFacts) -> None:
    wanted, on = recipe(adapter__kind="none", training__gradient_checkpointing="on"), gpus(2, 2000)
    resolved, _ = resolve(wanted, llama_8b, on, report(), 5000)
    alone = estimate_memory(llama_8b, wanted.adapter, resolved, report(), on)
    gone = alone.components["activations"] + alone.components["loss"]
    assert 0 < gone < 4 * resolved.trainable_parameters
    both = copied(alone, resolved)
    assert both.components["exchange"] == 4 * resolved.trainable_parameters - gone
    assert both.peak == alone.peak + both.components["exchange"]
    assert both.peak == alone.peak - gone + alone.components["gradients"]  # the end of a step, counted anew
    assert copied(alone, resolved.model_copy(update={"ranks": 2})).peak == both.peak + NCCL_BUFFERS


def test_shares_divide_what_stays_and_gather_the_rest(llama_8b: ModelFacts) -> None:
    """Of an 8B model in bf16: what stays divided by four; ends and a layer gathered, and the buffer that they
    arrived in."""
    plan = planned(llama_8b, gpus(8, 12))
    assert (plan.resolved.strategy, plan.resolved.ranks) == ("fsdp", 4) and plan.memory.fits
    assert plan.resolved.optimizer == "adamw" and "shares" in plan.reasons["training.optimizer"]
    wanted = recipe()
    alone = estimate_memory(llama_8b, wanted.adapter, plan.resolved, report(), gpus(1, 12))
    mine = plan.memory.components
    for name in ("base", "adapter", "gradients", "optimizer"):
        assert 0 <= 4 * mine[name] - alone.components[name] < 4
    for name in ("activations", "loss", "runtime"):
        assert mine[name] == alone.components[name]
    ends = 2 * 2 * 128256 * 4096
    layer = 2 * (2 * 4096 * (4096 + 1024) + 3 * 4096 * 14336) + alone.components["adapter"] // 2 // 32
    assert mine["exchange"] == pytest.approx(2 * ends + layer + NCCL_BUFFERS, rel=1e-3)
    assert plan.memory.peak == sum(mine.values())


def test_all_weights_in_shares_are_gathered_in_the_compute_type(llama_8b: ModelFacts) -> None:
    wanted, on = recipe(adapter__kind="none"), gpus(8, 80)
    plan = planned(llama_8b, on, wanted)
    assert plan.resolved.strategy == "fsdp" and plan.resolved.base_precision == "fp32"
    alone = estimate_memory(llama_8b, wanted.adapter, plan.resolved, report(), on)
    mine, ranks = sharded(alone, llama_8b, wanted.adapter, plan.resolved), plan.resolved.ranks
    assert mine == plan.memory
    assert mine.components["base"] == -(-4 * llama_8b.parameters.total // ranks)
    copies = weight_copies(llama_8b, wanted.adapter, plan.resolved)
    assert mine.components["activations"] == alone.components["activations"] - copies > 0
    layer = (llama_8b.parameters.total - 2 * 128256 * 4096) / 32
    whole = 2 * 2 * 2 * 128256 * 4096 + (2 + 2 + 4) * layer + NCCL_BUFFERS
    assert mine.components["exchange"] == pytest.approx(whole, rel=1e-3)


def test_packed_weights_are_gathered_packed(llama_8b: ModelFacts) -> None:
    plan = planned(llama_8b, gpus(8, 7.2), model__precision="nf4")
    wide = planned(llama_8b, gpus(8, 12))
    assert plan.resolved.strategy == wide.resolved.strategy == "fsdp"
    ends = 2 * 2 * 2 * 128256 * 4096 + NCCL_BUFFERS
    assert plan.memory.components["exchange"] - ends < (wide.memory.components["exchange"] - ends) / 2


@pytest.mark.parametrize(("precision", "width"), [("nf4", 4), ("bf16", 2)])
@pytest.mark.parametrize("ends", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_ends_that_train_are_gathered_beside_the_frozen_ones(
    llama_8b: ModelFacts, ends: list[str], precision: str, width: int
) -> None:
    """As they train beside packed weights, in the compute type beside others, and in the buffer that they
    arrived in; at a step's end their gradient too, beyond what is gone by then. No layer grows by them."""

    def in_shares(saved: list[str]) -> dict[str, int]:
        wanted, on = recipe(model__precision=precision, adapter__modules_to_save=saved), gpus(4, 80)
        resolved, _ = resolve(wanted, llama_8b, on, report(), 5000)
        resolved = resolved.model_copy(update={"strategy": "fsdp", "ranks": 4})
        alone = estimate_memory(llama_8b, wanted.adapter, resolved, report(), on)
        return sharded(alone, llama_8b, wanted.adapter, resolved).components

    trained, mine = len(ends) * 128256 * 4096, in_shares(ends)
    gradient = (width + 4) * trained - sum(mine.get(name, 0) for name in PASSING)
    more = mine["exchange"] - in_shares([])["exchange"]
    assert more == pytest.approx(2 * width * trained + max(0, gradient), abs=1)


def test_the_reduction_is_stated_and_part_of_the_step(llama_8b: ModelFacts) -> None:
    on = gpus(4, 80)
    alone = planned(llama_8b, on, training__gradient_accumulation=1).resolved.schedule
    plan = planned(llama_8b, on, hardware__gpus=4)
    ceilings, mine = ceilings_of(on), plan.resolved
    assert ceilings is not None and alone is not None and mine.schedule is not None
    assert plan.exchange_seconds is not None
    moved = 2 * 3 / 4 * 4 * mine.trainable_parameters
    assert plan.exchange_seconds == pytest.approx(moved / ceilings.pcie)
    assert mine.schedule.step_seconds is not None and alone.step_seconds is not None
    assert mine.schedule.step_seconds == pytest.approx(alone.step_seconds + plan.exchange_seconds, abs=2e-5)
    assert predicted_rate(mine) == pytest.approx(
        4 * mine.schedule.step_tokens / mine.schedule.step_seconds, rel=1e-6
    )
    linked = planned(llama_8b, gpus(4, 80, nvlinks=18), hardware__gpus=4)
    assert linked.exchange_seconds is not None and linked.exchange_seconds < plan.exchange_seconds / 5


def test_shares_gather_the_base_twice_and_scatter_gradients_in_each_micro_batch(llama_8b: ModelFacts) -> None:
    plan, ceilings = planned(llama_8b, gpus(8, 12)), ceilings_of(gpus(8, 12))
    assert ceilings is not None
    resolved = plan.resolved.model_copy(update={"gradient_accumulation": 3})
    base, link = 16 * 10**9, 1e11
    seconds = exchange_seconds(resolved, base, ceilings, link)
    gradients = 4 * resolved.trainable_parameters
    assert seconds == pytest.approx(3 * 3 / 4 * (gradients + 2 * base) / link)


def test_a_measured_speed_belongs_to_its_number_of_ranks(llama_8b: ModelFacts) -> None:
    two = planned(llama_8b, gpus(2, 80), hardware__gpus=2).resolved
    one = planned(llama_8b, gpus(2, 80)).resolved
    record_rate(llama_8b, two, 1000.0)
    assert known_rate(llama_8b, two) == 1000.0 and known_rate(llama_8b, one) is None
    record_rate(llama_8b, two, (predicted_rate(two) or 0) / 1.5)
    assert correction(two) == pytest.approx(1.5, rel=1e-3) and correction(one) == 1.0


def test_ranks_on_a_cpu_share_memory_and_cores(llama_8b: ModelFacts) -> None:
    on = machine(ram_gib=600, cpu_ranks=2)
    plan, alone = planned(llama_8b, on), planned(llama_8b, machine(ram_gib=600))
    assert (plan.resolved.strategy, plan.resolved.ranks, plan.resolved.threads) == ("ddp", 2, 4)
    assert alone.resolved.threads == 8 and plan.memory.capacity == 300 * GIB
    assert "WHET_CPU_RANKS=2" in plan.reasons["hardware.gpus"]


def test_free_memory_is_that_of_the_fullest_gpu_that_is_needed(llama_8b: ModelFacts) -> None:
    free = (70, 10, 60, 40)
    on = machine(*[gpu(80, free_gib=one).model_copy(update={"index": n}) for n, one in enumerate(free)])
    for ranks, least in ((1, 70), (2, 60), (4, 10)):
        assert planned(llama_8b, on, hardware__gpus=ranks).memory.available == least * GIB


def test_weights_must_find_room_in_memory_before_they_are_shared_out(llama_8b: ModelFacts) -> None:
    """Each process reads the whole model in its turn."""
    short = gpus(8, 12).model_copy(update={"ram_available": 10 * GIB})
    plan = planned(llama_8b, short)
    assert plan.resolved.strategy == "single"
    assert (
        "15 GiB of weights" in plan.reasons["hardware.gpus"]
        and "10 are free" in plan.reasons["hardware.gpus"]
    )


def test_deepspeed_divides_what_its_stage_says(llama_8b: ModelFacts) -> None:
    plan = planned(llama_8b, gpus(4, 80), hardware__gpus=4)
    alone = estimate_memory(llama_8b, recipe().adapter, plan.resolved, report(), gpus(1, 80))
    divided = {
        stage: {
            name
            for name, size in sharded(
                alone, llama_8b, recipe().adapter, plan.resolved, stage
            ).components.items()
            if size < alone.components.get(name, 0)
        }
        for stage in range(4)
    }
    assert divided == {stage: set(names) for stage, names in STAGES.items()}


@pytest.mark.parametrize(
    ("text", "wrong", "stage"),
    [
        ('{"zero_optimization": {"stage": 2}}', "", 2),
        ("{}", "", 0),
        ('{"zero_optimization": {"stage": "three"}}', "", 0),
        ('{"zero_optimization": {"stage": [1]}}', "", 0),
        ('{"zero_optimization": 1}', "", 0),
        ("[]", "not an object", 0),
        ("stage: 3", "no JSON", 0),
        (None, "No such file", 0),
    ],
)
def test_deepspeeds_file_is_read_for_its_stage(
    tmp_path: Path, text: str | None, wrong: str, stage: int
) -> None:
    file = tmp_path / "ds.json"
    if text is not None:
        file.write_text(text)
    found = deepspeed_of(recipe(hardware__deepspeed=str(file)))
    assert found is not None and found.stage == stage
    assert wrong in found.wrong and bool(wrong) == bool(found.wrong) == (found.problem is not None)
    assert deepspeed_of(recipe()) is None


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"zero_optimization": {"stage": 1}, "train_micro_batch_size_per_gpu": "auto"}, ""),
        ({"zero_optimization": {"stage": 3}}, "stage"),
        ({"zero_optimization": {"stage": 2}, "gradient_accumulation_steps": 4}, "gradient_accumulation"),
    ],
)
def test_what_deepspeeds_file_says_otherwise_is_known_before_the_start(
    llama_8b: ModelFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any], words: str
) -> None:
    """Of a rank's share of the step: four micro-batches of two GPUs are two."""
    for module in ("fitting", "deepspeed"):
        monkeypatch.setattr(f"whet.engine.parallel.{module}.find_spec", lambda name: name)
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(said))
    plan = planned(llama_8b, gpus(2, 80), hardware__deepspeed=str(file))
    if not words:
        assert (plan.resolved.strategy, plan.resolved.ranks, plan.problem) == ("deepspeed", 2, None)
    else:
        assert plan.problem is not None and words in plan.problem.title and plan.resolved.ranks == 1
        assert plan.problem.patch == {"hardware.deepspeed": None}


def test_several_machines_share_the_step_and_not_their_memory(llama_8b: ModelFacts) -> None:
    """Each has its own host memory and cores; between them is no NVLink."""
    here = machine(ram_gib=600, cpu_ranks=2)
    plan = planned(llama_8b, here, hardware__machines=2)
    assert (plan.resolved.ranks, plan.resolved.rows_per_step, plan.resolved.threads) == (4, 8, 4)
    assert plan.memory.capacity == 300 * GIB
    on = gpus(2, 80, nvlinks=18)
    two, one = planned(llama_8b, on, hardware__machines=2), planned(llama_8b, on, hardware__gpus=2)
    assert (two.resolved.strategy, two.resolved.ranks) == ("ddp", 4)
    assert one.exchange_seconds is not None and two.exchange_seconds is not None
    assert two.exchange_seconds > 5 * one.exchange_seconds


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ({"method__kind": "preference", "method__loss": "kto"}, "preference holds whole weights"),
        ({"method__kind": "reward"}, "reward holds whole weights"),
        ({"model__precision": "int8"}, "int8"),
        ({"training__precision": "fp16"}, "fp16"),
        ({"model__head_precision": "int8"}, "fast path"),
    ],
)
def test_what_cannot_be_shared_stays_on_one_gpu(
    llama_8b: ModelFacts, patch: dict[str, Any], words: str
) -> None:
    plan = planned(llama_8b, gpus(4, 7), **patch)
    assert plan.resolved.strategy == "single" and not plan.memory.fits
    assert words in plan.reasons["hardware.gpus"] and plan.problem is None


@pytest.mark.parametrize(("kind", "ranks"), [("sft", 8), ("preference", 4)])
def test_only_losses_by_token_may_part_a_micro_batch(llama_8b: ModelFacts, kind: str, ranks: int) -> None:
    on = gpus(8, 80)
    said = planned(llama_8b, on, method__kind=kind).reasons["hardware.gpus"]
    assert f"hardware.gpus={ranks} " in said
    plan = planned(llama_8b, on, method__kind=kind, hardware__gpus=8)
    assert (plan.problem is None) == (kind == "sft")


def test_gpus_left_out_are_a_way_out_that_keeps_the_step(llama_8b: ModelFacts) -> None:
    wanted, on = recipe(hardware__gpus=1), gpus(8, 12)
    plan = planned(llama_8b, on, wanted)
    assert not plan.memory.fits
    others = find_alternatives(wanted, plan.resolved, llama_8b, on, report(), plan.memory)
    assert others[0].memory.fits and others[0].patch == {"hardware.gpus": 4}
    assert "4 GPUs" in others[0].text
    for freed in (recipe(), recipe(hardware__gpus=4)):
        assert planned(llama_8b, on, freed).memory.fits


def test_how_many_such_gpus_would_do_is_said_where_they_are_not(llama_8b: ModelFacts) -> None:
    """Where no setting fits, the memory finding names the number."""
    on, wanted = gpus(1, 9), recipe(adapter__kind="none")
    resolved, _ = resolve(wanted, llama_8b, on, report(), 5000)
    assert Sharing(wanted, resolved, llama_8b, report(), on).fewest() is None
    lora, on = recipe(), gpus(1, 12)
    resolved, _ = resolve(lora, llama_8b, on, report(), 5000)
    assert Sharing(lora, resolved, llama_8b, report(), on).fewest() == 4
    facts = plan_facts(llama_8b, wanted=lora, on=on, fitting_gpus=4)
    (found,) = [one for one in run_checks(facts) if one.id == "L11"]
    assert found.fix is not None and "4 such GPUs" in found.fix.text
    assert found.evidence["fitting_gpus"] == 4


def test_a_wish_that_cannot_be_met_blocks_with_a_patch(llama_8b: ModelFacts) -> None:
    on = gpus(2, 80)
    plan = planned(llama_8b, on, hardware__gpus=3)
    assert plan.problem is not None and plan.resolved.ranks == 1
    found = [
        one
        for one in run_checks(plan_facts(llama_8b, on=on, ranks_problem=plan.problem))
        if one.severity == "error"
    ]
    assert [one.id for one in found] == ["E13"]
    assert found[0].fix is not None and found[0].fix.patch == {"hardware.gpus": 2}
