"""How a step is timed, on either side alike: by when optimizer steps have ended on the device."""

from __future__ import annotations

import statistics
import time
from importlib import metadata
from itertools import pairwise
from typing import Any

import torch
from cases import Job, Measured
from transformers import TrainerCallback

PACKAGES = ("torch", "transformers", "trl", "peft", "sentence-transformers", "triton")


class Clock(TrainerCallback):
    """Notes when steps end; the allocator's peak counts from the first step's begin.

    On a CPU the process's own time is taken, which others on the machine change little.
    """

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.marks.append(time.perf_counter())
        else:
            self.marks.append(time.process_time())


def measured(job: Job, clock: Clock, losses: list[float], rewards: list[float]) -> Measured:
    """Of a training that has ended."""
    seconds = [after - before for before, after in pairwise(clock.marks[job.warm - 1 :])]
    step = statistics.median(seconds)
    cuda = job.device == "cuda"
    installed = {one.metadata["Name"].lower(): one.version for one in metadata.distributions()}
    return Measured(
        rate=job.batch / step,
        step=step,
        peak=torch.cuda.max_memory_allocated() if cuda else None,
        losses=ends(losses),
        rewards=ends(rewards),
        device=torch.cuda.get_device_name() if cuda else "",
        versions={name: installed[name] for name in PACKAGES if name in installed},
    )


def ends(values: list[float]) -> list[float]:
    """The first and the last, where there are any."""
    return [values[0], values[-1]] if values else []
