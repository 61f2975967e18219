"""What is drawn beside the training steps (evaluations, samples, trials) must not change them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


class RandomState:
    """The generators as they are now: Python's, numpy's, torch's on the CPU and on ``device``."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._python, self._numpy = random.getstate(), np.random.get_state()
        self._torch = torch.get_rng_state()
        self._cuda: Any = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Go on from there."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self.device)
