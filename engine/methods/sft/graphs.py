"""Forward and backward of a packed micro-batch as one CUDA graph, where launching costs more than computing.

A shape seen for the first time runs eagerly, which compiles and allocates what the second time captures; from
then on it is replayed. What differs between batches of one shape lies in static buffers. Gradients accumulate
in the flat buffer that parameters' ``grad`` are views of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ...models.fast_path import DecoderProgram, PackedTokens
from ..graphed import NotCaptured, capture
from .packed_steps import MicroBatch

SECONDS_A_LAYER = 6e-3
"""Host time of a layer's launches, forward and backward, measured on a server CPU."""
FLOPS_A_SECOND = 5e14
"""What a data-centre GPU does in such steps; smaller GPUs are launch-bound later, so this errs to graphs."""
SHAPES = 64
"""Most graphs kept; later shapes stay eager."""
TOKENS, LONGEST, DOCUMENTS = 512, 1024, 8
"""Steps that shapes are rounded up to, so that few of them occur."""

Shape = tuple[int, int, int, int, int]
Results = tuple[torch.Tensor, torch.Tensor]


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    batch: MicroBatch
    scale: torch.Tensor
    results: Results
    held: list[torch.Tensor]
    """What the graph has the addresses of, beside weights and its own memory."""


class GraphedLoss:
    """Runs ``scale * loss`` forward and backward for micro-batches, captured shape by shape.

    Args:
        run: eager forward and backward: (batch on the device, 0-d scale) -> (loss, correct), both detached.
        shared: buffers that ``run`` reads and others may replace; a graph keeps those it was captured with.
    """

    def __init__(
        self,
        run: Callable[[MicroBatch, torch.Tensor], Results],
        shared: Callable[[], list[torch.Tensor]] = list,
    ) -> None:
        self.run, self.shared = run, shared
        self.graphs: dict[Shape, _Captured] = {}
        self.seen: set[Shape] = set()
        self.longest = 0
        self.stopped: str | None = None
        """Why nothing is captured any more."""
        self._told = False

    def __call__(self, batch: MicroBatch, scale: float, device: torch.device) -> Results:
        """(loss, correct) of a micro-batch that lies on the CPU."""
        batch = replace(batch, packed=self._rounded(batch.packed))
        shape = shape_of(batch)
        captured = self.graphs.get(shape)
        if captured is None:
            on_device = batch.to(device)
            factor = torch.tensor(scale, device=device)
            if shape not in self.seen or self.stopped or len(self.graphs) >= SHAPES:
                self.seen.add(shape)
                return self.run(on_device, factor)
            captured = self._capture(on_device, factor)
            if captured is None:
                return self.run(on_device, factor)
            self.graphs[shape] = captured
        _copy(batch, captured.batch)
        captured.scale.fill_(scale)
        captured.graph.replay()
        return captured.results[0].clone(), captured.results[1].clone()

    def _rounded(self, packed: PackedTokens) -> PackedTokens:
        """The same documents with a number of offsets and a bound on lengths that recur.

        The bound only grows: it costs little, and a smaller one would be one more shape. Documents of equal
        length stay as they are: their layout is faster, and recurs by itself.
        """
        if packed.documents * packed.longest == len(packed.input_ids_T):
            return packed
        documents = -(-packed.documents // DOCUMENTS) * DOCUMENTS
        missing = documents + 1 - len(packed.offsets)
        offsets = torch.cat([packed.offsets, packed.offsets[-1:].expand(missing)])
        self.longest = max(self.longest, -(-packed.longest // LONGEST) * LONGEST)
        # Counted as if all had tokens, so that the same attention is chosen for all batches of a shape.
        return replace(packed, offsets=offsets, longest=self.longest, documents=documents)

    def _capture(self, batch: MicroBatch, scale: torch.Tensor) -> _Captured | None:
        others = [one.graph for one in self.graphs.values()]
        try:
            graph, results = capture(lambda: self.run(batch, scale), others)
        except NotCaptured as error:
            self.stopped = str(error)
            return None
        return _Captured(graph, batch, scale, results, self.shared())

    def newly_stopped(self) -> str | None:
        """Why nothing is captured any more; once."""
        found, self._told = (None if self._told else self.stopped), self._told or self.stopped is not None
        return found


def shape_of(batch: MicroBatch) -> Shape:
    """What a graph is captured for."""
    packed = batch.packed
    return (
        len(packed.input_ids_T),
        len(batch.places_S),
        len(packed.offsets),
        packed.longest,
        packed.documents,
    )


def launch_bound(program: DecoderProgram, tokens: int) -> str | None:
    """Why micro-batches of so many tokens run without a graph; None: they are worth one."""
    if not program.report.complete:
        return "some parts run on the plain path"
    if any(projection.stack.drops for projection in program.in_force.projections):
        return "dropout draws random numbers on the host"
    if any(keep.offload for keep in program.keep):
        return "the host waits for copies to its memory"
    weights = sum(p.numel() for p in program.decoder.parameters() if p.dim() == 2)
    if 6 * weights * tokens / FLOPS_A_SECOND > SECONDS_A_LAYER * len(program.layers):
        return "the GPU is busy longer than launching takes"
    return None


def _copy(source: MicroBatch, target: MicroBatch) -> None:
    pairs = (
        (source.packed.input_ids_T, target.packed.input_ids_T),
        (source.packed.positions_T, target.packed.positions_T),
        (source.packed.offsets, target.packed.offsets),
        (source.places_S, target.places_S),
        (source.labels_S, target.labels_S),
    )
    for host, device in pairs:
        device.copy_(host.pin_memory(), non_blocking=True)
