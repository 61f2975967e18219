"""Imports in processes of our own, without Python's collector of garbage. Light.

torch and what stands on it leave half a million objects that stay as long as the process does. While they
come, the collector walks those that are there already again and again, and when the process ends it walks
them once more. Without that, on two slow cores, what a training imports took 8.7 s of processor time where it
took 10.7, and its process ended in 0.5 s where it took 2.8 (benchmarks/results/imports-cpu-2026-11-30.md).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """What is made inside stays, and no collection walks it, then or later.

    For imports alone, and in a process of our own: garbage of now is kept as well.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
