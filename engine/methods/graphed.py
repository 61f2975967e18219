"""A batch's forward and backward passes as one CUDA graph: encoders compute faster than they launch.

A kind of batch that is new runs eagerly, which compiles what a capture cannot; from then on each shape of the
kind is captured once and replayed over static copies of the batch. Gradients accumulate in the buffer that
``grad`` are views of.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Generic, Self, TypeVar

import torch

SHAPES = 64
"""Most graphs kept; later shapes stay eager."""

Kind = tuple[int, ...]
"""What kernels are compiled for: a bound on lengths, and numbers of texts."""
Shape = tuple[int, int, Kind]
"""Tokens, offsets, kind."""


class StaticBatch(ABC):
    """A batch whose tensors can be copied into those of another one of its shape."""

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """What a graph is captured for."""

    @abstractmethod
    def tensors(self) -> list[torch.Tensor]:
        """All that differs between batches of one shape, always in the same order."""

    @abstractmethod
    def pinned(self) -> Self:
        """In pinned memory, from which copies to a GPU need not wait."""

    @abstractmethod
    def on(self, device: torch.device) -> Self:
        """On another device, without waiting for the copy."""


Batch = TypeVar("Batch", bound=StaticBatch)
Result = TypeVar("Result")


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    batch: Any
    scale: torch.Tensor
    loss: torch.Tensor
    held: list[torch.Tensor]
    """What the graph has the addresses of, beside weights and its own memory."""


class GraphedStep(Generic[Batch]):
    """Runs batches, captured shape by shape.

    Args:
        run: (batch on the device, 0-d scale) -> scaled loss; launches alone.
        shared: buffers that ``run`` reads and others may replace.
    """

    def __init__(
        self,
        run: Callable[[Batch, torch.Tensor], torch.Tensor],
        shared: Callable[[], list[torch.Tensor]],
    ) -> None:
        self.run, self.shared = run, shared
        self.graphs: dict[Shape, _Captured] = {}
        self.seen: set[Kind] = set()
        self.stopped: str | None = None
        """Why nothing is captured any more."""

    def __call__(self, batch: Batch, scale: float | torch.Tensor, device: torch.device) -> torch.Tensor:
        """The scaled loss of a batch that lies on the CPU; ``scale`` may lie on the device."""
        shape, host = batch.shape, batch.pinned()
        captured = self.graphs.get(shape)
        if captured is None:
            there = host.on(device)
            # A tensor of its own: replays write into it.
            factor = torch.empty((), device=device)
            _set(factor, scale)
            known = shape[2] in self.seen and self.stopped is None and len(self.graphs) < SHAPES
            captured = self._capture(there, factor) if known else None
            self.seen.add(shape[2])
            if captured is None:
                return self.run(there, factor)
            self.graphs[shape] = captured
        for target, source in zip(captured.batch.tensors(), host.tensors(), strict=True):
            target.copy_(source, non_blocking=True)
        _set(captured.scale, scale)
        captured.graph.replay()
        return captured.loss.clone()

    def release(self) -> None:
        """Let go of all graphs and their memory; shapes that were seen are captured again."""
        if self.graphs:
            torch.cuda.synchronize()
            self.graphs.clear()

    def _capture(self, batch: Batch, scale: torch.Tensor) -> _Captured | None:
        try:
            graph, loss = capture(lambda: self.run(batch, scale), [one.graph for one in self.graphs.values()])
        except NotCaptured as error:
            self.stopped = str(error)
            warnings.warn(f"Steps are not replayed as CUDA graphs: {self.stopped}", stacklevel=2)
            return None
        return _Captured(graph, batch, scale, loss, self.shared())


class NotCaptured(Exception):
    """A step stays eager; the message says why."""


def capture(run: Callable[[], Result], others: Sequence[torch.cuda.CUDAGraph]) -> tuple[Any, Result]:
    """A graph of what ``run`` launches, and what it returned, which replays write into.

    Args:
        run: launches alone, all of which were compiled before.
        others: graphs that are never replayed at once with this one; they share their memory.

    Raises:
        NotCaptured: where the same step may run eagerly all the same.
    """
    # The eager pass left its activations in the allocator's cache; the graph wants them for its own.
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, pool=others[0].pool() if others else None):
            result = run()
    except capture_errors() as error:
        torch.cuda.set_stream(before)  # an invalid capture raises once more as it ends, and stays on its own
        torch.cuda.empty_cache()
        raise NotCaptured(_reason(error)) from error
    return graph, result


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "too little memory beside what is cached"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def capture_errors() -> tuple[type[Exception], ...]:
    """What a capture raises where the same step may run eagerly: torch's errors (too little memory, an
    operation that waits for the host), and those of a kernel that Triton cannot compile or launch."""
    if find_spec("triton") is None:
        return (RuntimeError,)
    from triton.errors import TritonError

    return RuntimeError, TritonError


def _set(target: torch.Tensor, value: float | torch.Tensor) -> None:
    """Without waiting for the device."""
    if isinstance(value, torch.Tensor):
        target.copy_(value, non_blocking=True)
    else:
        target.fill_(value)
