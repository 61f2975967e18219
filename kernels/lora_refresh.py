"""LoRA factors copied into the compute type, all of a model in one launch.

The optimizer steps fp32 factors; products want them stacked, scaled and in 16 bits. Hundreds of small copies
a step would be launch-bound, so a table of addresses on the device tells one kernel where everything is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .backend import uses_triton
from .spec import Compilation

_BLOCK = 2048
_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@dataclass(frozen=True)
class Refresh:
    """target = source * scale; the source contiguous, the target of any row stride."""

    source: torch.Tensor
    target: torch.Tensor
    scale: float

    def run(self) -> None:
        """This copy alone."""
        torch.mul(self.source.detach(), self.scale, out=self.target)


@triton.jit
def refresh_kernel(table, scales, ELEMENT: tl.constexpr, BLOCK: tl.constexpr):
    """One block of one copy. A row of the table: source, target, elements, columns, target's row stride."""
    job = tl.program_id(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    elements = tl.load(table + job * 5 + 2)
    if tl.program_id(0) * BLOCK < elements:
        source = tl.load(table + job * 5).to(tl.pointer_type(tl.float32))
        target = tl.load(table + job * 5 + 1).to(tl.pointer_type(ELEMENT))
        columns, stride = tl.load(table + job * 5 + 3), tl.load(table + job * 5 + 4)
        value = tl.load(source + at, mask=at < elements, other=0.0) * tl.load(scales + job)
        tl.store(target + (at // columns) * stride + at % columns, value.to(ELEMENT), mask=at < elements)


@dataclass(frozen=True)
class _Table:
    """A list of copies as the kernel reads it."""

    copies: list[Refresh]
    """The table holds bare addresses: what they point at must live."""
    rows: torch.Tensor
    scales: torch.Tensor
    blocks: int


class Refresher:
    """Runs lists of copies, the same few ones again and again.

    Tables are kept for good: a captured CUDA graph may still read the one it was captured with.
    """

    def __init__(self) -> None:
        self._tables: dict[tuple[tuple[int, int, float], ...], _Table] = {}

    def run(self, copies: Sequence[Refresh]) -> None:
        """All copies; sources fp32 (others, and the CPU, go one by one)."""
        if not copies:
            return
        first = copies[0]
        same = all(c.source.dtype == torch.float32 and c.target.dtype == first.target.dtype for c in copies)
        if not uses_triton(first.target) or not same:
            for copy in copies:
                copy.run()
            return
        key = tuple((c.source.data_ptr(), c.target.data_ptr(), c.scale) for c in copies)
        if key not in self._tables:
            self._tables[key] = _described(copies)
        table, element = self._tables[key], _TYPES[first.target.dtype]
        refresh_kernel[(table.blocks, len(copies))](
            table.rows, table.scales, ELEMENT=element, BLOCK=_BLOCK, num_warps=4
        )


def _described(copies: Sequence[Refresh]) -> _Table:
    rows = [
        (c.source.data_ptr(), c.target.data_ptr(), c.source.numel(), c.source.shape[1], c.target.stride(0))
        for c in copies
    ]
    device = copies[0].target.device
    return _Table(
        copies=list(copies),
        rows=torch.tensor(rows, dtype=torch.int64, device=device),
        scales=torch.tensor([c.scale for c in copies], dtype=torch.float32, device=device),
        blocks=triton.cdiv(max(c.source.numel() for c in copies), _BLOCK),
    )


COMPILATIONS = (
    Compilation(
        refresh_kernel,
        {"table": "*i64", "scales": "*fp32", "ELEMENT": "constexpr", "BLOCK": "constexpr"},
        {"ELEMENT": tl.float16, "BLOCK": _BLOCK},
    ),
)
