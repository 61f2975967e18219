"""The share of each optimizer step's rows that one of several processes takes.

All of them go through the same micro-batches in the same seeded order, those of one process, and take every
N-th. Where a step has fewer than they could take (an epoch's last), some get a filler: a micro-batch of the
step once more, which the trainer counts for nothing, so that all processes do the same number of passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader


class StepShares(BatchSampler):
    """One process's micro-batches of an epoch.

    Args:
        batch_sampler: the micro-batches of all processes, in order.
        accumulation: micro-batches of a step that each process takes.
        rank: number of this process.
        ranks: how many there are.
    """

    def __init__(self, batch_sampler: Any, accumulation: int, rank: int, ranks: int) -> None:
        self.batch_sampler, self.accumulation = batch_sampler, accumulation
        self.rank, self.ranks = rank, ranks

    @property
    def sampler(self) -> Any:  # type: ignore[override]
        """Of the rows; accelerate tells it the epoch."""
        return getattr(self.batch_sampler, "sampler", None)

    def set_epoch(self, epoch: int) -> None:
        """Tell whoever shuffles."""
        for inner in (self.batch_sampler, self.sampler):
            tell = getattr(inner, "set_epoch", None)
            if tell is not None:
                tell(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        # A sampler that keeps rows apart may have more batches than it says it has; one process stops there.
        batches = islice(self.batch_sampler, len(self.batch_sampler))
        while step := list(islice(batches, self.accumulation * self.ranks)):
            for number in range(math.ceil(len(step) / self.ranks)):
                place = number * self.ranks + self.rank
                yield step[place] if place < len(step) else step[0]

    def __len__(self) -> int:
        steps, rest = divmod(len(self.batch_sampler), self.accumulation * self.ranks)
        return steps * self.accumulation + math.ceil(rest / self.ranks)

    def counting(self, step: int) -> tuple[int, int]:
        """How many micro-batches of an epoch's ``step`` (from 0) count: of this process, and of all. What
        comes behind those of this process is filler."""
        whole = self.accumulation * self.ranks
        steps = math.ceil(len(self.batch_sampler) / whole)
        present = min(whole, len(self.batch_sampler) - step % steps * whole)
        return math.ceil((present - self.rank) / self.ranks), present


def shared_loader(loader: Any, accumulation: int, rank: int, ranks: int) -> DataLoader:
    """This process's loader of training rows.

    Args:
        loader: as accelerate prepared it for several processes; its own way of sharing repeats rows where an
            epoch's last step is not full.
        accumulation, rank, ranks: see :class:`StepShares`.
    """
    shard = loader.batch_sampler
    assert isinstance(loader, DataLoaderShard) and isinstance(shard, BatchSamplerShard)
    return _reloaded(loader, StepShares(shard.batch_sampler, accumulation, rank, ranks))


def whole_loader(loader: Any) -> Any:
    """Of held-out rows: as accelerate prepared it for several processes, without the sharing."""
    shard = loader.batch_sampler
    return _reloaded(loader, shard.batch_sampler) if isinstance(shard, BatchSamplerShard) else loader


def _reloaded(loader: Any, batch_sampler: Any) -> DataLoader:
    plain: DataLoader = DataLoader(
        loader.dataset,
        batch_sampler=batch_sampler,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
    )
    return prepare_data_loader(
        plain,
        loader.device,
        1,
        0,
        put_on_device=loader.device is not None,
        non_blocking=loader._non_blocking,
    )


def each_nth(loader: Any, rank: int, ranks: int) -> DataLoader:
    """Of a loader of all held-out rows, the batches of one process."""
    rows, batch_size = len(loader.dataset), loader.batch_sampler.batch_size
    return _reloaded(loader, EachNth(rows, batch_size, rank, ranks))


def counted(loader: DataLoader) -> Iterator[tuple[Any, bool]]:
    """The batches of held-out rows, and whether each counts."""
    shared = loader.batch_sampler
    counting = shared.counting if isinstance(shared, EachNth) else math.inf
    for number, batch in enumerate(loader):
        yield batch, number < counting


class EachNth(BatchSampler):
    """Every N-th batch of held-out rows, from this process's number on. The first ``counting`` count; a
    filler follows where others have one more.

    Args:
        rows: how many there are.
        batch_size: rows of a batch.
        rank, ranks: see :class:`StepShares`.
    """

    def __init__(self, rows: int, batch_size: int, rank: int, ranks: int) -> None:
        self.rows, self.batch_size, self.rank, self.ranks = rows, batch_size, rank, ranks

    @property
    def counting(self) -> int:
        """Batches of this process."""
        return len(range(self.rank * self.batch_size, self.rows, self.ranks * self.batch_size))

    def __iter__(self) -> Iterator[list[int]]:
        for round_ in range(len(self)):
            place = round_ * self.ranks + self.rank if round_ < self.counting else 0
            yield list(range(place * self.batch_size, min((place + 1) * self.batch_size, self.rows)))

    def __len__(self) -> int:
        return math.ceil(self.rows / (self.batch_size * self.ranks))
