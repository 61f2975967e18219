"""The planner's search: what it chooses fits, nothing cheaper does, and more memory is never slower."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.plan_inputs import GIB, LLAMA_8B, adapter, model_facts

from whet.engine.calibration import TYPICAL
from whet.engine.models.facts import ModelFacts
from whet.engine.models.fast_memory import Choice, allocated, choice_of, fast_memory, fast_peak
from whet.engine.models.fast_shape import FastShape, Held, fast_shape
from whet.engine.models.fast_time import Rows, step_time
from whet.engine.schedule import Schedule
from whet.engine.scheduler import (
    Room,
    budgets,
    choose_schedule,
    largest_rank,
    longest_of,
    longest_sequence,
)

H200 = dict(TYPICAL)["H200"]
GB = 10**9
FIXED = Rows(8, 2048, 2048.0, 2048.0, equal=True)
CHATS = Rows(8, 2048, 400.0, 700.0, supervised=0.6)


@pytest.fixture
def facts(tmp_path: Path) -> ModelFacts:
    return model_facts(tmp_path / "8b")


def shape_of(facts: ModelFacts, **held: Any) -> FastShape:
    found = fast_shape(facts, adapter(rank=16), Held(**held))
    assert isinstance(found, FastShape)
    return found


def fits(shape: FastShape, rows: Rows, schedule: Schedule, room: Room) -> bool:
    choice = choice_of(schedule, rows.supervised, rows.longest)
    return fast_memory(shape, choice, capacity=room.device, available=0, exact=True).fits


@pytest.mark.parametrize("rows", [FIXED, CHATS, replace(FIXED, per_step=96)], ids=["fixed", "chats", "many"])
@pytest.mark.parametrize("gigabytes", [22, 24, 32, 48, 80, 141])
@pytest.mark.parametrize("host", [0, 200 * GIB], ids=["alone", "host"])
def test_what_is_chosen_fits(rows: Rows, gigabytes: int, host: int, facts: ModelFacts) -> None:
    shape, room = shape_of(facts), Room(gigabytes * GB, host)
    schedule = choose_schedule(shape, rows, room, H200)
    assert fits(shape, rows, schedule, room)
    choice = choice_of(schedule, rows.supervised, rows.longest)
    assert schedule.peak_bytes == allocated(shape, fast_peak(shape, choice))
    assert schedule.step_seconds == pytest.approx(step_time(shape, rows, choice, H200).total, abs=1e-4)
    assert rows.longest <= schedule.budget <= rows.most
    assert schedule.host_bytes <= host / 2
    assert schedule.offload == 0 or host


def test_nothing_cheaper_of_the_same_kind_fits(facts: ModelFacts) -> None:
    """Every combination of recomputed halves, tried by brute force at the chosen budget and around it."""
    shape, room = shape_of(facts), Room(24 * GB)
    schedule = choose_schedule(shape, FIXED, room, H200)
    assert schedule.recomputes and schedule.step_seconds is not None
    best = min(
        step_time(shape, FIXED, choice, H200).total
        for budget in budgets(FIXED)
        for mlp in range(33)
        for attention in range(33)
        for choice in [Choice(budget, 1.0, 2048, recompute_attention=attention, recompute_mlp=mlp)]
        if fast_memory(shape, choice, capacity=room.device, available=0, exact=True).fits
    )
    assert schedule.step_seconds == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("base", ["bf16", "nf4"])
def test_more_memory_is_never_slower(base: str, facts: ModelFacts) -> None:
    shape = shape_of(facts, base_precision=base)
    steps = [choose_schedule(shape, FIXED, Room(size * GB), H200) for size in (22, 24, 32, 48, 64, 80, 141)]
    assert all(after.step_seconds <= before.step_seconds for before, after in pairwise(steps))  # type: ignore[operator]
    assert steps[-1].budget == FIXED.most and not steps[-1].recomputes and steps[-1].chunk is None
    assert steps[0].recomputes or steps[0].budget < FIXED.most


def test_what_the_recipe_asks_is_done(facts: ModelFacts) -> None:
    shape = shape_of(facts)
    on = choose_schedule(shape, FIXED, Room(141 * GB), H200, "on")
    assert on.recompute_mlp == on.recompute_attention == 32 and on.budget == FIXED.most
    off = choose_schedule(shape, FIXED, Room(24 * GB), H200, "off")
    assert not off.recomputes and off.budget < FIXED.most


def test_where_nothing_fits_the_smallest_is_named(facts: ModelFacts) -> None:
    shape, room = shape_of(facts), Room(10 * GB)
    schedule = choose_schedule(shape, FIXED, room, H200)
    assert not fits(shape, FIXED, schedule, room)
    assert (schedule.budget, schedule.recompute_mlp, schedule.recompute_attention) == (2048, 32, 32)


def test_short_rows_go_together_though_long_ones_are_possible(facts: ModelFacts) -> None:
    """Room for every row at its longest would cost recomputing in each step; most steps are far smaller."""
    schedule = choose_schedule(shape_of(facts), CHATS, Room(32 * GB), H200)
    assert schedule.budget < CHATS.most
    assert schedule.micro_batches < 2
    assert not schedule.recomputes


def test_without_known_speed_no_time_is_predicted(facts: ModelFacts) -> None:
    shape = shape_of(facts, device="cpu", compute_dtype="fp32", base_precision="fp32")
    schedule = choose_schedule(shape, FIXED, Room(500 * GB), None)
    assert schedule.step_seconds is None and schedule.tokens_per_second is None
    assert not schedule.recomputes and schedule.budget == FIXED.most


def test_budgets_are_few_and_cover_one_row_to_all() -> None:
    for per_step in (1, 2, 7, 64, 800_000):
        found = budgets(replace(FIXED, per_step=per_step))
        assert found[0] == per_step * 2048 and found[-1] == 2048
        assert len(found) <= 3 * per_step.bit_length() and found == sorted(set(found), reverse=True)


def test_flags_follow_the_counts() -> None:
    schedule = Schedule(layers=4, budget=64, recompute_attention=1, recompute_mlp=3, offload=4, chunk=4096)
    assert schedule.keep_attention == [False, True, True, True]
    assert schedule.keep_mlp == [False, False, False, True]
    assert schedule.offloaded == [True] * 4
    assert schedule.summary() == (
        "3 of 4 layers recompute their MLP, 1 of 4 layers recompute their attention, "
        "all layers keep their input in host memory, MLPs take 4,096 tokens at a time"
    )
    assert Schedule(layers=4, budget=64).summary() == "everything is kept"
    assert Schedule.model_validate_json(schedule.model_dump_json()) == schedule


# -- the largest that fits --------------------------------------------------------------------------------


@pytest.mark.parametrize("gigabytes", [24, 48, 80, 141])
@pytest.mark.parametrize("host", [0, 200 * GIB], ids=["alone", "host"])
def test_the_longest_sequence_fits_and_a_longer_one_does_not(
    gigabytes: int, host: int, facts: ModelFacts
) -> None:
    held, room = Held(base_precision="nf4"), Room(gigabytes * GB, host)
    shape = shape_of(facts, base_precision="nf4")
    longest = longest_sequence(facts, adapter(rank=16), held, room)
    assert longest is not None and longest == longest_of(shape, room)

    def trains(tokens: int) -> bool:
        rows = Rows.of_lengths([tokens], 1)
        return fits(shape, rows, choose_schedule(shape, rows, room, H200), room)

    assert trains(longest)
    assert longest == 131072 or not trains(longest + 64)


def test_longest_sequences_grow_with_memory_and_with_fewer_bits(facts: ModelFacts) -> None:
    def longest(gigabytes: int, base: str, host: int = 0) -> int:
        found = longest_sequence(
            facts, adapter(rank=16), Held(base_precision=base), Room(gigabytes * GB, host)
        )
        assert found is not None
        return found

    assert longest(10, "bf16") == 0
    assert 0 < longest(24, "bf16") < longest(24, "nf4") < longest(48, "nf4") < longest(48, "nf4", 200 * GIB)
    assert longest(24, "nf4", 200 * GIB) >= 32768


def test_a_model_off_the_fast_path_has_no_such_answer(facts: ModelFacts) -> None:
    assert longest_sequence(facts, adapter(kind="dora"), Held(), Room(80 * GB)) is None
    assert largest_rank(facts, adapter(kind="dora"), Held(), Room(80 * GB), 2048) is None


def test_the_largest_rank_fits_and_the_next_does_not(facts: ModelFacts) -> None:
    held, room = Held(), Room(24 * GB)
    rank = largest_rank(facts, adapter(), held, room, 2048)
    assert rank is not None and 64 <= rank < 4096

    def trains(rank: int) -> bool:
        shape = fast_shape(facts, adapter(rank=rank), held)
        assert isinstance(shape, FastShape)
        rows = Rows.of_lengths([2048], 1)
        return fits(shape, rows, choose_schedule(shape, rows, room, H200), room)

    assert trains(rank) and not trains(rank + 1)
    assert largest_rank(model_facts(facts.path, LLAMA_8B), adapter(), held, Room(10 * GB), 2048) == 0
