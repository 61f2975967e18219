"""The 8-bit dynamic code of optimizer states, in blocks of 256 numbers with one fp32 maximum each.

A code has seven decades, (1e-7, 1e-6) to (0.1, 1). Decade i (0 to 6) is cut into n_i = n_0 2^i equal
intervals and holds their midpoints, so precision goes where the large numbers are and range is never lost;
0 and 1 complete the 256 entries. The signed code has n_0 = 1 and both signs, the unsigned one n_0 = 2. It is
the data type of 8-bit optimizers (Dettmers et al., arXiv:2110.02861, section 1.3) with the entries of
bitsandbytes, so states can be exchanged with its optimizers. A number x of a block is stored as the entry
nearest to x / max|block|.

The rounding error is at most 0.45 / n_i of a decade's upper end: in the top decade (n_6 = 64, signed) 0.7 %
of a number near 1 and 7 % of one near 0.1, half of that unsigned. A linear 8-bit code would lose everything
below 1/254 of the block's largest, and second moments, being squares, span twice the gradients' decades.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

BLOCK = 256
DECADES = 7


@dataclass(frozen=True)
class BlockState:
    """A flat tensor in 8 bits.

    Args:
        codes: (P,) uint8, positions in the code of :func:`dynamic_code`.
        absmax: (ceil(P / 256),) fp32, the largest magnitude of each block.
        signed: which of the two codes.
    """

    codes: torch.Tensor
    absmax: torch.Tensor
    signed: bool

    @classmethod
    def zeros(cls, numel: int, *, signed: bool, device: torch.device | str | None = None) -> BlockState:
        """The state that stands for ``numel`` zeros."""
        codes = torch.full((numel,), zero_code(signed), dtype=torch.uint8, device=device)
        return cls(codes, torch.zeros(-(-numel // BLOCK), dtype=torch.float32, device=device), signed)

    def slice(self, start: int, stop: int) -> BlockState:
        """Numbers ``start`` to ``stop`` as views; ``start`` must be a block's first."""
        blocks = slice(start // BLOCK, -(-stop // BLOCK))
        return BlockState(self.codes[start:stop], self.absmax[blocks], self.signed)


def zero_code(signed: bool) -> int:
    """The position of 0 in the sorted code."""
    return 127 if signed else 0


@cache
def dynamic_code(signed: bool, device: torch.device) -> torch.Tensor:
    """The 256 entries, ascending, fp32 (256,)."""
    entries = [torch.zeros(1), torch.ones(1)]
    for decade in range(DECADES):
        intervals = (1 if signed else 2) << decade
        edges = torch.linspace(0.1, 1, intervals + 1, dtype=torch.float32)
        midpoints = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - DECADES + 1)
        entries += [midpoints, -midpoints] if signed else [midpoints]
    return torch.cat(entries).sort().values.to(device)


@cache
def _nearest_table(signed: bool, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """For each upper half of an fp32's bits, the code of the least number with it, int32 (65536,); and the
    number from which each code's successor is nearer, (256,).

    Two such numbers lie closer together than those limits, so one comparison corrects the table's code.
    """
    code = dynamic_code(signed, torch.device("cpu"))
    limits = torch.cat([(code[:-1] + code[1:]) / 2, torch.tensor([torch.inf])])
    halves = torch.arange(1 << 16, dtype=torch.int32)
    least = (halves << 16) | 0xFFFF * (halves >= 1 << 15).to(torch.int32)
    table = torch.bucketize(least.view(torch.float32), limits[:-1], right=True, out_int32=True)
    return table.to(device), limits.to(device)


def _nearest(x_BK: torch.Tensor, signed: bool) -> torch.Tensor:
    """The nearest entries' codes, int32. A binary search of each number would take five times as long."""
    table, limits = _nearest_table(signed, x_BK.device)
    x_P = x_BK.flatten()
    codes = table.index_select(0, (x_P.view(torch.int32) >> 16) & 0xFFFF)
    return (codes + (x_P >= limits.index_select(0, codes))).view(x_BK.shape)


def quantize_blocks(x_P: torch.Tensor, *, signed: bool) -> BlockState:
    """``x_P`` (P,) in 8 bits, each number by its nearest entry.

    In the unsigned code a positive number never becomes 0: it is a second moment, and the first moment beside
    it would be divided by next to nothing.
    """
    blocks_BK = in_blocks(x_P.float())
    absmax_B = blocks_BK.abs().amax(1)
    scaled_BK = blocks_BK / absmax_B.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes_BK = _nearest(scaled_BK, signed)
    if not signed:
        codes_BK = torch.where(blocks_BK > 0, codes_BK.clamp(min=1), codes_BK)
    return BlockState(codes_BK.to(torch.uint8).flatten()[: x_P.numel()], absmax_B, signed)


def dequantize_blocks(state: BlockState) -> torch.Tensor:
    """The numbers of ``state``, fp32 (P,)."""
    code = dynamic_code(state.signed, state.codes.device)
    blocks_BK = in_blocks(code.index_select(0, state.codes.int()))
    return (blocks_BK * state.absmax[:, None]).flatten()[: state.codes.numel()]


def in_blocks(x_P: torch.Tensor) -> torch.Tensor:
    """(P,) as (ceil(P / 256), 256), filled up with zeros."""
    missing = -x_P.numel() % BLOCK
    return torch.nn.functional.pad(x_P, (0, missing)).view(-1, BLOCK) if missing else x_P.view(-1, BLOCK)
