"""What is drawn beside the training steps (evaluations, samples, trials) must not change them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """What is drawn inside (numpy, torch on the CPU and on ``device``) is not seen outside.

    Other GPUs are not touched: asking one for its state would open a context on it.
    """
    numpy_state = np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    np.random.set_state(numpy_state)
