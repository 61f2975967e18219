"""Between two micro-batches of a step on the fast path a run may be left: a long step is not waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from ...parallel.collectives import most

T = TypeVar("T")


def interruptible(batches: Sequence[T], between: Callable[[], None], device: torch.device) -> Iterator[T]:
    """The micro-batches of a step, with a call of ``between`` before each but the first.

    Processes pack their rows by themselves: one that has fewer micro-batches goes on calling ``between``
    until the others are done, so that what it agrees on is asked in all of them.

    A GPU's work can only be left before it is queued, so no more than two micro-batches are at once.

    Args:
        batches: of this process.
        between: may raise, in all processes at the same call.
        device: that they are computed on.
    """
    queued: torch.cuda.Event | None = None
    for number in range(most(len(batches))):
        if number:
            between()
        if number >= len(batches):
            continue
        yield batches[number]
        if device.type == "cuda":
            if queued is not None:
                queued.synchronize()
            queued = torch.cuda.Event()
            queued.record()
