"""Which implementation of an operation runs: the Triton kernel, or its plain-torch reference.

Triton runs on GPUs. On the CPU the reference runs (attention has one more back end there), unless a test asks
for Triton's interpreter, which needs ``TRITON_INTERPRET=1`` in the environment before any kernel is imported.
``WHET_KERNELS=reference`` runs everything on the references.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

BACKENDS = ("triton", "reference", "cpu")
"""``cpu``: what a CPU runs by itself."""

_forced: ContextVar[str | None] = ContextVar("whet_kernel_backend", default=None)


def uses_triton(tensor: torch.Tensor) -> bool:
    """Whether an operation on ``tensor`` runs its Triton kernel (else the reference)."""
    choice = _forced.get()
    if choice is None:
        choice = os.environ.get("WHET_KERNELS", "triton")
        return choice == "triton" and tensor.is_cuda
    return choice == "triton"


def only_references() -> bool:
    """Whether references were asked for, on whatever device."""
    return (_forced.get() or os.environ.get("WHET_KERNELS", "triton")) == "reference"


def interpreting() -> bool:
    """Whether Triton kernels of this process run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@contextmanager
def forced(backend: str) -> Iterator[None]:
    """Run the operations of the block on one backend, whatever the device and the environment say.

    Raises:
        ValueError: for a backend that is not one of :data:`BACKENDS`.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known are {', '.join(BACKENDS)}")
    token = _forced.set(backend)
    try:
        yield
    finally:
        _forced.reset(token)
