"""How long each reward may take, as both ends of the guarded process know it."""

from __future__ import annotations

import os
import sys
from math import ceil

from ..errors import WhetError
from .sandbox.programs import START_SECONDS
from .spec import CodeTests, FunctionReward, Reward

LOAD_SECONDS = 120.0
"""For importing the functions' modules, which may bring large libraries."""
TAKING_SECONDS = 60.0
"""For reading a batch, which only a process that stands still does not."""
GRACE_SECONDS = 2.0
"""After its limit a reward is first interrupted where it is, to say where; then its process is killed."""

CULPRIT_SECONDS = 1.0
"""Of that, for finding the completion that a function fails on."""


def workers() -> int:
    """Programs of models that run at once: one a CPU that we may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def patience(spec: Reward, count: int) -> float:
    """Seconds after which a reward of ``count`` completions can only be hanging."""
    if isinstance(spec, FunctionReward):
        return spec.seconds + GRACE_SECONDS
    if isinstance(spec, CodeTests):
        return ceil(count / workers()) * (spec.seconds + START_SECONDS) + GRACE_SECONDS
    return count * spec.seconds + GRACE_SECONDS


def timed_out(title: str, seconds: float, place: str = "") -> WhetError:
    """The error for a reward that does not come back; ``place`` is where it was."""
    where = f"; it was at {place}" if place else ""
    return WhetError(
        "reward.timed_out",
        f"Reward {title} took more than {seconds:g} s for a batch{where}.",
        "Make it faster or raise its `seconds`, then resume the run from its last checkpoint.",
    )
