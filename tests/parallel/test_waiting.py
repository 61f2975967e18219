"""What processes tell each other: who waits waits as long as it takes, a lost one is not taken for memory,
and what one of them found all know."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import timedelta
from typing import Any, cast

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from whet.engine.methods.memory_errors import out_of_memory_said
from whet.engine.methods.sft.leaving import interruptible
from whet.engine.methods.watching import without_gradient
from whet.engine.parallel import collectives
from whet.engine.parallel.process_group import WAITING_SECONDS, joined
from whet.engine.parallel.topology import LOOPBACK, Topology
from whet.engine.runs.context import RunContext, Stopped


@pytest.mark.parametrize(("seconds", "limit"), [(None, WAITING_SECONDS), (7.0, 7.0)])
def test_the_limit_is_said_each_time(
    monkeypatch: pytest.MonkeyPatch, seconds: float | None, limit: float
) -> None:
    """The barrier would take 30 minutes for its own, whatever the group was made with."""
    limits: list[timedelta] = []

    def barrier(group: Any, timeout: timedelta) -> None:
        limits.append(timeout)

    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "monitored_barrier", barrier)
    collectives.wait_for_all(seconds)
    assert limits == [timedelta(seconds=limit)]


def test_a_lost_process_is_not_memory_that_ran_out() -> None:
    """NCCL says it in a class of its own, which is a RuntimeError as torch's out of memory is."""
    lost = distributed.DistBackendError("NCCL communicator was aborted on rank 0.")
    with pytest.raises(distributed.DistBackendError) as seen, out_of_memory_said(cast(RunContext, None)):
        raise lost
    assert seen.value is lost


def test_what_one_process_found_all_of_them_know() -> None:
    """As the module where a row's numbers went wrong, which one process alone has."""
    found = [["", "layers.3, größer"], ["", ""], ["first", "second"]]
    known = in_two(lambda rank: [collectives.first_told(texts[rank]) for texts in found])
    assert known == [["layers.3, größer", "", "first"]] * 2
    assert collectives.first_told("alone") == "alone"


def test_a_weight_of_one_row_has_a_gradient_though_one_share_is_empty() -> None:
    def look(_rank: int) -> tuple[list[str], int]:
        shares, model = [Shard(0)], torch.nn.Linear(4, 1, bias=False)
        mesh = init_device_mesh("cpu", (2,))
        model.weight = torch.nn.Parameter(distribute_tensor(torch.ones(1, 4), mesh, shares))
        model.weight.grad = distribute_tensor(torch.ones(1, 4), mesh, shares)
        return without_gradient(model)

    assert in_two(look) == [([], 1)] * 2


def test_a_process_with_fewer_micro_batches_agrees_on_leaving_with_the_others() -> None:
    """Of three and one, left before the third; of as many again that nobody leaves."""

    def step(rank: int, leaves_at: int) -> list[str]:
        asked: list[str] = []

        def between() -> None:
            asked.append("asked")
            (leaves,) = collectives.agreed(int(rank == 0 and asked.count("asked") == leaves_at))
            if leaves:
                raise Stopped

        with suppress(Stopped):
            for batch in interruptible(["a", "b", "c"][: 1 if rank else 3], between, torch.device("cpu")):
                asked.append(batch)
        return asked

    first, other = in_two(lambda rank: (step(rank, 2), step(rank, 9)))
    assert first == (["a", "asked", "b", "asked"], ["a", "asked", "b", "asked", "c"])
    assert other == (["a", "asked", "asked"], ["a", "asked", "asked"])
    assert list(interruptible([], pytest.fail, torch.device("cpu"))) == []


def in_two(work: Callable[[int], Any]) -> list[Any]:
    """What ``work`` returns in each of two processes that met, by rank."""
    with closing(socket.socket()) as free:
        free.bind((LOOPBACK, 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe(duplex=False) for _ in range(2)]

    def main(rank: int) -> None:
        os.environ.update(Topology(rank, rank, 2).variables(LOOPBACK, port))
        with joined("cpu"):
            pipes[rank][1].send(work(rank))

    processes = [fork.Process(target=main, args=(rank,)) for rank in range(2)]
    try:
        for process in processes:
            process.start()
        assert all(reader.poll(30) for reader, _ in pipes)
        return [reader.recv() for reader, _ in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join(5)
