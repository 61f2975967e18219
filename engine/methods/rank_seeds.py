"""The seeds of random numbers that a process begins anew."""

from __future__ import annotations

import numpy as np


def rank_seed(seed: int, rank: int, step: int) -> int:
    """From a run's seed, the process's number and the step it begins at; different for each of them."""
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1)[0])
