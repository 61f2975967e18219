"""What is measured of any stack's run: the ends of its steps, the allocator's memory, losses and versions."""

from __future__ import annotations

import gc
import time
from importlib import metadata
from typing import Any

from rows import GIB, Job, Result

PACKAGES = (
    "torch", "triton", "transformers", "trl", "peft", "bitsandbytes", "liger-kernel", "unsloth",
    "unsloth_zoo",
)  # fmt: skip


def clock(marks: list[float]) -> Any:
    """A callback that notes when each optimizer step has ended on the device."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            marks.append(time.time())

    return Clock()


def after_loading(job: Job, started: float) -> Result:
    """With what loading took; the peak of training is counted from here."""
    import torch

    result = Result(load=time.time() - started, versions=versions())
    if job.device == "cuda":
        result.device = torch.cuda.get_device_name()
        result.load_peak = torch.cuda.max_memory_allocated() / GIB
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return result


def after_training(job: Job, result: Result, trainer: Any, marks: list[float], started: float) -> None:
    """Add what training took, all but its rates: these count what the task counts."""
    import torch

    if job.device == "cuda":
        result.peak = torch.cuda.max_memory_allocated() / GIB
        result.reserved = torch.cuda.max_memory_reserved() / GIB
    result.eighth = marks[7] - started if len(marks) >= 8 else None
    result.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def versions() -> dict[str, str]:
    """Of the packages that matter and are installed."""
    installed = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}
