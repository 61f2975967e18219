"""A batch's forward and backward passes as one CUDA graph: encoders compute faster than they launch.

A kind of batch that is new runs eagerly, which compiles what a capture cannot; from then on each shape of the
kind is captured once and replayed over static copies of the batch. Gradients accumulate in the buffer that
``grad`` are views of.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from .token_texts import TextBatch

SHAPES = 64
"""Most graphs kept; later shapes stay eager."""

Kind = tuple[int, int, int]
"""Bound on lengths, rows and columns: what kernels are compiled for."""
Shape = tuple[int, int, Kind]


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    batch: TextBatch
    scale: torch.Tensor
    loss: torch.Tensor
    held: list[torch.Tensor]
    """What the graph has the addresses of, beside weights and its own memory."""


class GraphedStep:
    """Runs batches, captured shape by shape.

    Args:
        run: (batch on the device, 0-d scale) -> scaled loss; launches alone.
        shared: buffers that ``run`` reads and others may replace.
    """

    def __init__(
        self,
        run: Callable[[TextBatch, torch.Tensor], torch.Tensor],
        shared: Callable[[], list[torch.Tensor]],
    ) -> None:
        self.run, self.shared = run, shared
        self.graphs: dict[Shape, _Captured] = {}
        self.seen: set[Kind] = set()
        self.stopped: str | None = None
        """Why nothing is captured any more."""

    def __call__(self, batch: TextBatch, scale: float, device: torch.device) -> torch.Tensor:
        """The scaled loss of a batch that lies on the CPU."""
        shape, host = _shape(batch), replace(batch, packed=batch.packed.pin())
        captured = self.graphs.get(shape)
        if captured is None:
            there = replace(host, packed=host.packed.to(device))
            factor = torch.tensor(scale, device=device)
            known = shape[2] in self.seen and self.stopped is None and len(self.graphs) < SHAPES
            captured = self._capture(there, factor) if known else None
            self.seen.add(shape[2])
            if captured is None:
                return self.run(there, factor)
            self.graphs[shape] = captured
        for name in ("input_ids_T", "positions_T", "offsets"):
            target = getattr(captured.batch.packed, name)
            target.copy_(getattr(host.packed, name), non_blocking=True)
        captured.scale.fill_(scale)
        captured.graph.replay()
        return captured.loss.clone()

    def _capture(self, batch: TextBatch, scale: torch.Tensor) -> _Captured | None:
        # The eager pass left its activations in the allocator's cache; the graph wants them for its own.
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self.graphs.values())).graph.pool() if self.graphs else None
        try:
            with torch.cuda.graph(graph, pool=pool):
                loss = self.run(batch, scale)
        except RuntimeError as error:  # out of memory, or an operation that waits for the host
            self.stopped = str(error).strip().splitlines()[0]
            warnings.warn(f"Steps are not replayed as CUDA graphs: {self.stopped}", stacklevel=2)
            torch.cuda.empty_cache()
            return None
        return _Captured(graph, batch, scale, loss, self.shared())


def _shape(batch: TextBatch) -> Shape:
    packed = batch.packed
    kind = packed.longest, batch.rows, batch.columns
    return len(packed.input_ids_T), len(packed.offsets), kind
