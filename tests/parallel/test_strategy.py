"""How many ranks share a step, by which strategy, and what is said where a wish cannot be met. Pure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.plan_inputs import gpu, machine

from whet.engine.parallel.section import HardwareSection
from whet.engine.parallel.strategy import (
    Choice,
    DeepSpeedFacts,
    Devices,
    StepRows,
    Strategy,
    alike_gpus,
    choose,
    devices_of,
)

H100S = Devices(8, "H100")
ROWS = StepRows(2, 4)


def fitting(ddp: bool, fsdp_from: int | None = None) -> Callable[[Strategy, int], bool]:
    """Whole copies fit or not; shares fit from so many ranks on."""

    def fits(strategy: Strategy, ranks: int) -> bool:
        if strategy == "fsdp":
            return fsdp_from is not None and ranks >= fsdp_from
        return ddp

    return fits


FITS = fitting(True)


def chosen(
    gpus: int | str = "auto",
    devices: Devices = H100S,
    rows: StepRows = ROWS,
    fits: Callable[[Strategy, int], bool] = FITS,
    refused: dict[str, str] | None = None,
    deepspeed: DeepSpeedFacts | None = None,
) -> Choice:
    wish = HardwareSection.model_validate({"gpus": gpus})
    return choose(wish, rows, devices, fits, lambda strategy: (refused or {}).get(strategy, ""), deepspeed)


@pytest.mark.parametrize(
    ("batch", "accumulation", "ranks", "expected"),
    [
        (2, 4, 1, (2, 4)),
        (2, 4, 2, (2, 2)),
        (2, 4, 4, (2, 1)),
        (2, 4, 8, (1, 1)),
        (2, 4, 3, None),
        (2, 4, 16, None),
        (4, 3, 2, (3, 2)),
        (4, 3, 6, (2, 1)),
        (6, 1, 2, (3, 1)),
        (1, 8, 8, (1, 1)),
        (5, 1, 2, None),
    ],
)
def test_a_step_is_shared_equally_or_not_at_all(
    batch: int, accumulation: int, ranks: int, expected: tuple[int, int] | None
) -> None:
    rows = StepRows(batch, accumulation)
    assert rows.share(ranks) == expected
    if expected is not None:
        assert ranks * expected[0] * expected[1] == rows.rows and expected[0] <= batch


@pytest.mark.parametrize("ranks", range(1, 13))
@pytest.mark.parametrize("rows", [StepRows(2, 4), StepRows(3, 4), StepRows(8, 1), StepRows(4, 3)])
def test_the_numbers_that_share_are_the_divisors(rows: StepRows, ranks: int) -> None:
    assert (rows.share(ranks) is not None) == (rows.rows % ranks == 0)
    assert (ranks in rows.divisors(12)) == (rows.rows % ranks == 0)


def test_micro_batches_stay_whole_where_their_rows_belong_together() -> None:
    """Half a micro-batch would be another loss."""
    whole = StepRows(4, 2, whole=True)
    assert whole.share(2) == (4, 1) and whole.share(4) is None
    said = chosen(4, rows=whole).problem
    assert said is not None and "whole" in said.title and said.patch == {"hardware.gpus": 2}


def test_auto_leaves_a_shared_machine_to_others() -> None:
    choice = chosen()
    assert (choice.strategy, choice.ranks) == ("single", 1)
    assert "fits one GPU" in choice.reason and choice.offer == 8
    assert chosen(devices=Devices(6, "H100")).offer == 4
    assert chosen(refused={"ddp": "no"}).offer == chosen(devices=Devices(1, "H100")).offer == 1


@pytest.mark.parametrize(("needed", "ranks"), [(2, 2), (3, 4), (5, 8)])
def test_auto_takes_the_fewest_that_hold_it(needed: int, ranks: int) -> None:
    choice = chosen(fits=fitting(False, needed))
    assert (choice.strategy, choice.ranks, choice.problem) == ("fsdp", ranks, None)
    assert choice.batch_size * choice.accumulation * ranks == ROWS.rows
    assert "does not fit one GPU" in choice.reason


def test_auto_stays_alone_where_more_do_not_help() -> None:
    assert "either" in chosen(fits=fitting(False)).reason
    assert "preference" in chosen(fits=fitting(False, 2), refused={"fsdp": "preference: no"}).reason
    for choice in (chosen(fits=fitting(False)), chosen(fits=fitting(False, 2), refused={"fsdp": "no"})):
        assert (choice.strategy, choice.ranks, choice.problem) == ("single", 1, None)


def test_one_gpu_is_said_to_be_one() -> None:
    assert chosen(devices=Devices(1, "T4")).reason == "there is one GPU"
    assert "T4" in chosen(devices=Devices(1, "T4", others=1)).reason


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_number_is_taken_as_asked(ranks: int) -> None:
    copies, shares = chosen(ranks), chosen(ranks, fits=fitting(False, 2))
    assert (copies.strategy, copies.ranks, copies.problem) == ("ddp", ranks, None)
    assert (shares.strategy, shares.ranks, shares.problem) == ("fsdp", ranks, None)
    # what fits nowhere takes the way that needs least, and the memory check says the rest
    assert chosen(ranks, fits=fitting(False)).strategy == "fsdp"
    assert chosen(ranks, fits=fitting(False), refused={"fsdp": "int8"}).strategy == "ddp"


def test_one_is_one() -> None:
    choice = chosen(1, fits=fitting(False, 2))
    assert (choice.strategy, choice.ranks, choice.problem) == ("single", 1, None)


@pytest.mark.parametrize(
    ("gpus", "devices", "words", "patch"),
    [
        (3, H100S, "does not divide an optimizer step of 8 rows (2 × 4)", 2),
        (5, H100S, "does not divide", 4),
        (4, Devices(2, "H100"), "there are 2 H100", 2),
        (16, Devices(3, "H100"), "there are 3 H100", 2),
        (2, Devices(1, "H100", others=1), "there are 1 H100, beside 1 of other kinds", 1),
        (2, Devices(1, "Xeon", cuda=False), "there is no GPU", "auto"),
        (4, Devices(2, "Xeon", cuda=False), "there are 2 processes on the CPU", 2),
    ],
)
def test_a_wish_that_cannot_be_met_comes_with_one_that_can(
    gpus: int, devices: Devices, words: str, patch: int | str
) -> None:
    choice = chosen(gpus, devices)
    assert choice.problem is not None and words in choice.problem.title
    assert (choice.strategy, choice.ranks) == ("single", 1)
    assert choice.problem.patch == {"hardware.gpus": patch}
    assert chosen(patch, devices).problem is None


def test_a_method_that_cannot_says_so() -> None:
    said = chosen(2, refused={"ddp": "grpo: not shown", "fsdp": "grpo: not shown"}).problem
    assert said is not None and "grpo: not shown" in said.title and said.patch == {"hardware.gpus": 1}


def test_a_cpu_tries_as_many_as_its_switch_says() -> None:
    two = Devices(2, "Xeon", cuda=False)
    assert (chosen(devices=two).strategy, chosen(devices=two).ranks) == ("ddp", 2)
    assert "WHET_CPU_RANKS=2" in chosen(devices=two).reason
    assert chosen(devices=Devices(3, "Xeon", cuda=False)).ranks == 2  # three do not divide eight rows
    assert chosen(devices=two, fits=fitting(False, 2)).strategy == "fsdp"
    assert chosen(1, devices=two).ranks == 1 and chosen(2, devices=two).strategy == "ddp"
    assert chosen(devices=two, refused={"ddp": "no"}).ranks == 1
    assert chosen(devices=two, rows=StepRows(1, 1)).ranks == 1
    assert chosen(devices=Devices(1, "Xeon", cuda=False)).reason == "no GPU"


@pytest.mark.parametrize(
    ("facts", "devices", "words"),
    [
        (DeepSpeedFacts("ds.json", False), H100S, "needs the package deepspeed"),
        (DeepSpeedFacts("ds.json", True, "ds.json is no JSON."), H100S, "is no JSON"),
        (DeepSpeedFacts("ds.json", True), Devices(1, "Xeon", cuda=False), "no GPU"),
    ],
)
def test_deepspeed_says_what_it_lacks(facts: DeepSpeedFacts, devices: Devices, words: str) -> None:
    said = chosen(devices=devices, deepspeed=facts).problem
    assert said is not None and words in said.title and said.patch == {"hardware.deepspeed": None}
    assert (said.command == "pip install deepspeed") == (not facts.installed)


def test_deepspeed_takes_what_divides() -> None:
    there = DeepSpeedFacts("ds.json", True, stage=2)
    every = chosen(deepspeed=there, devices=Devices(6, "H100"))
    assert (every.strategy, every.ranks, every.reason) == ("deepspeed", 4, "by ds.json")
    assert chosen(2, deepspeed=there).ranks == 2
    assert chosen(3, deepspeed=there).problem is not None
    refused = chosen(2, deepspeed=there, refused={"deepspeed": "sft in int8: no"}).problem
    assert refused is not None and "int8" in refused.title


def test_gpus_of_the_commonest_kind_take_part() -> None:
    kinds = [("A", 80), ("B", 24), ("A", 80), ("C", 48)]
    gpus = [gpu(size).model_copy(update={"name": name, "index": n}) for n, (name, size) in enumerate(kinds)]
    assert [one.index for one in alike_gpus(gpus)] == [0, 2]
    assert devices_of(machine(*gpus)) == Devices(2, "A", others=2)
    assert [one.name for one in alike_gpus(gpus[1:])] == ["A"]  # one of each: the roomiest
    assert devices_of(machine(cpu_ranks=2)) == Devices(2, "Test CPU", cuda=False)


@pytest.mark.parametrize("value", ["two", "2", 0, -1, True, 2.5, None])
def test_the_section_takes_a_number_or_auto(value: object) -> None:
    with pytest.raises(ValueError, match="a whole number of GPUs from 1 on, or auto"):
        HardwareSection.model_validate({"gpus": value})
    assert [HardwareSection.model_validate({"gpus": one}).gpus for one in ("auto", 1, 8)] == ["auto", 1, 8]
