"""Who takes which rows: together the processes take what one process takes, and as many passes each."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate.data_loader import DataLoaderShard, prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from whet.engine.methods.rank_seeds import rank_seed
from whet.engine.methods.shares import EachNth, StepShares, shared_loader, whole_loader


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("rows", [1, 5, 16, 23, 24])
def test_a_step_is_that_of_one_process(rows: int, accumulation: int, ranks: int) -> None:
    batches = list(BatchSampler(SequentialSampler(range(rows)), 2, drop_last=False))
    shares = [StepShares(batches, accumulation, rank, ranks) for rank in range(ranks)]
    taken = [list(one) for one in shares]
    assert {len(one) for one in taken} == {len(one) for one in shares} == {len(shares[0])}
    whole = accumulation * ranks
    steps = math.ceil(len(batches) / whole)
    for step in range(steps):
        counted = []
        for one, mine in zip(shares, taken, strict=True):
            counts, of_all = one.counting(step)
            passes = mine[step * accumulation : (step + 1) * accumulation]
            counted += passes[:counts]
            assert all(filler in batches for filler in passes[counts:])
        assert of_all == len(counted)
        assert sorted(counted) == batches[step * whole : (step + 1) * whole]
    assert shares[0].counting(steps) == shares[0].counting(0)  # the next epoch's first


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("rows", [1, 7, 12])
def test_each_held_out_row_counts_once(rows: int, ranks: int) -> None:
    shares = [EachNth(rows, 2, rank, ranks) for rank in range(ranks)]
    taken = [list(one) for one in shares]
    assert {len(one) for one in taken} == {len(shares[0])}
    counted = [
        row
        for one, mine in zip(shares, taken, strict=True)
        for batch in mine[: one.counting]
        for row in batch
    ]
    assert sorted(counted) == list(range(rows))


def test_random_numbers_begin_differently_in_each_process_and_at_each_step() -> None:
    seeds = [rank_seed(seed, rank, step) for seed in (0, 1) for rank in (0, 1) for step in (0, 1)]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [rank_seed(seed, rank, step) for seed in (0, 1) for rank in (0, 1) for step in (0, 1)]


@pytest.mark.parametrize("waits", [True, False])
def test_a_shared_loader_waits_for_a_copy_to_the_gpu_where_the_given_one_does(waits: bool) -> None:
    rows: DataLoader = DataLoader(range(8), batch_size=2)  # type: ignore[arg-type]
    given = prepare_data_loader(rows, torch.device("cpu"), 2, 0, put_on_device=True, non_blocking=not waits)
    for loader in (shared_loader(given, 1, 0, 2), whole_loader(given)):
        assert isinstance(loader, DataLoaderShard) and loader._non_blocking is not waits
