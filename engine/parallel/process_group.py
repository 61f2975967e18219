"""The processes of one training: how they meet, and what they wait on each other with.

One process never meets anybody: nothing here does anything for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate.utils import check_cuda_p2p_ib_support
from torch import distributed

from ..errors import WhetError

MEETING_SECONDS = 300.0
"""How long the others may take to start."""
EXCHANGE_SECONDS = 1800.0
"""How long one exchange of a step may take before it counts as broken."""
WAITING_SECONDS = 7 * 24 * 3600.0
"""How long the others wait while one works alone (samples, checks); a dead process ends the run much sooner,
by whoever watches the processes."""
UNSUPPORTED_EXCHANGES = ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE")
"""Ways between GPUs that some of them lack."""

_waiting: list[distributed.ProcessGroup] = []


@contextmanager
def joined(device: str, seconds: float = EXCHANGE_SECONDS) -> Iterator[None]:
    """Meet the other processes that the environment tells of (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
    MASTER_PORT, as torchrun sets them) and leave them at the end.

    Args:
        device: ``cuda`` (tensors there go through NCCL, and LOCAL_RANK says which of the visible GPUs is this
            process's) or ``cpu``; tensors on the CPU always go through gloo.
        seconds: limit of one exchange.

    Raises:
        WhetError: ``run.ranks_unmet`` when not all of them are there in time.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _waiting:
        yield
        return
    if device == "cuda":
        if not check_cuda_p2p_ib_support():  # accelerate refuses such GPUs of old drivers otherwise
            os.environ |= dict.fromkeys(UNSUPPORTED_EXCHANGES, "1")
        # srun and operators may show each process its own GPU alone; accelerate counts in the same way.
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count()))
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    _meet(backend, seconds)
    _waiting[:] = [distributed.new_group(backend="gloo", timeout=timedelta(seconds=WAITING_SECONDS))]
    try:
        yield
    finally:
        _waiting.clear()
        distributed.destroy_process_group()


def _meet(backend: str, seconds: float) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, rank, world = next(
            iter(distributed.rendezvous("env://", timeout=timedelta(seconds=MEETING_SECONDS)))
        )
        distributed.init_process_group(
            backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=seconds)
        )
    except (distributed.DistNetworkError, distributed.DistStoreError) as error:
        raise WhetError(
            "run.ranks_unmet",
            f"Process {rank} of {world} did not meet the others at {address} within {MEETING_SECONDS:g} s: "
            f"{str(error).strip().splitlines()[0]}",
            "See the other processes' logs for why they did not start, then resume the run.",
        ) from error


def waiting_group() -> distributed.ProcessGroup | None:
    """The group to wait in for as long as it takes; None for one process."""
    return _waiting[0] if _waiting else None


def own_device(device: str) -> str:
    """``cuda`` as this process's own GPU, where each has another: transformers takes it for whichever is
    current, accelerate compares numbers."""
    return f"cuda:{torch.cuda.current_device()}" if device == "cuda" and world_size() > 1 else device


def world_size() -> int:
    """Processes that :func:`joined` each other; 1 in a script that met others by itself."""
    return distributed.get_world_size() if _waiting else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return distributed.get_rank() if _waiting else 0
