"""What the processes of one training tell each other: decisions, sums, turns. For one process nothing.

Every function is entered by all of them, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from .process_group import WAITING_SECONDS, rank, waiting_group, world_size


def agreed(*decision: int) -> tuple[int, ...]:
    """The decision of process 0, whatever the others would have decided; whole numbers."""
    if world_size() == 1:
        return decision
    told = torch.tensor(decision, dtype=torch.int64)
    distributed.broadcast(told, src=0, group=waiting_group())
    return tuple(told.tolist())


def sum_counts(*counts: int) -> tuple[int, ...]:
    """Whole numbers, each summed over the processes: tokens, rows."""
    if world_size() == 1:
        return counts
    total = torch.tensor(counts, dtype=torch.int64)
    distributed.all_reduce(total)
    return tuple(total.tolist())


def most(count: int) -> int:
    """The largest of the processes' whole numbers."""
    if world_size() == 1:
        return count
    largest = torch.tensor(count, dtype=torch.int64)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return int(largest)


def sum_numbers(*numbers: float) -> tuple[float, ...]:
    """Numbers, each summed over the processes in fp64; the same bits everywhere."""
    if world_size() == 1:
        return numbers
    total = torch.tensor(numbers, dtype=torch.float64)
    distributed.all_reduce(total)
    return tuple(total.tolist())


def first_told(text: str) -> str:
    """What the first process that has something to tell tells, in all of them; empty where none has."""
    if world_size() == 1:
        return text
    written = text.encode()
    sizes = torch.zeros(world_size(), dtype=torch.int64)
    sizes[rank()] = len(written)
    distributed.all_reduce(sizes, group=waiting_group())
    teller = next((number for number, size in enumerate(sizes.tolist()) if size), None)
    if teller is None:
        return ""
    told = torch.tensor(list(written), dtype=torch.uint8)
    told = told if rank() == teller else torch.empty(int(sizes[teller]), dtype=torch.uint8)
    distributed.broadcast(told, src=teller, group=waiting_group())
    return bytes(told.tolist()).decode()


def sum_buffers(buffers: Iterable[torch.Tensor]) -> None:
    """Sum tensors over the processes in place, on the device that they are on."""
    if world_size() > 1:
        for buffer in buffers:
            distributed.all_reduce(buffer)


def wait_for_all(seconds: float | None = None) -> None:
    """Go on when all processes are here.

    Args:
        seconds: at most; None waits for as long as one of them works alone.
    """
    if world_size() > 1:
        # Said each time: this barrier's own default is torch's 30 minutes, not the group's limit.
        limit = timedelta(seconds=WAITING_SECONDS if seconds is None else seconds)
        distributed.monitored_barrier(group=waiting_group(), timeout=limit)


@contextmanager
def one_at_a_time() -> Iterator[bool]:
    """Process 0 is told True and works inside; the others are told False, and all leave together."""
    yield rank() == 0
    wait_for_all()


def broadcast_tensors(tensors: Sequence[torch.Tensor]) -> None:
    """Give all processes those of process 0, in place."""
    if world_size() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)
