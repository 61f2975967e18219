"""A head over a vocabulary, read for some rows at a time: what every loss on logits shares.

The logits of all supervised rows are the largest tensor of a training step (16,384 rows × 128,256 tokens × 2
bytes = 3.9 GiB), so they are never held together: a chunk of rows is multiplied by the head, reduced, turned
into its gradient in place, and multiplied back. A head kept in 8 or 4 bits is read in blocks of tokens.

Legend: S supervised rows (of a chunk), D width, V vocabulary, B tokens of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import triton

from .rows import accumulation_type, addressable

CHUNK_BYTES = 512 * 2**20  # of logits held at once
BLOCK_BYTES = 128 * 2**20  # of a quantised head's rows in 16 bits held at once
FP16_GRADIENT_SCALE = 256.0  # a probability of 1/V on its way through fp16 stays out of the subnormal numbers


class HeadWeight(Protocol):
    """A frozen head (V, D) that is not a plain tensor, such as a quantised one."""

    @property
    def shape(self) -> torch.Size:
        """(V, D)."""
        ...

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows [start, stop) as a dense (stop - start, D) tensor; ``start`` is a multiple of 256."""
        ...


@dataclass(frozen=True)
class LogitMap:
    """From products x = hidden · weight + bias to logits softcap · tanh(x · scale / softcap) / temperature.

    Args:
        softcap: Gemma 2's ``final_logit_softcapping``; None for none.
        scale: factor before the cap: Cohere's ``logit_scale``, 1 / Granite's ``logits_scaling``.
        temperature: divides what comes out.
    """

    softcap: float | None = None
    scale: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.softcap is not None and self.softcap <= 0:
            raise ValueError(f"softcap must be positive, not {self.softcap}; None means no cap")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")

    @property
    def inner(self) -> float:
        """Factor of the products: before tanh, or all there is."""
        return self.scale / (self.temperature if self.softcap is None else self.softcap)

    @property
    def outer(self) -> float:
        """Factor after tanh; 1 without a cap."""
        return 1.0 if self.softcap is None else self.softcap / self.temperature

    def apply(self, products_SV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Logits and d logit / d product, in plain torch, in the products' type."""
        scaled = products_SV * self.inner
        if self.softcap is None:
            return scaled, self.inner
        bent = scaled.tanh_()
        return bent * self.outer, (1 - bent * bent) * (self.outer * self.inner)


PLAIN = LogitMap()


@dataclass(frozen=True)
class LogitsTile:
    """Launch of a kernel in :mod:`whet.kernels.softmax_triton` over rows of V logits."""

    width: int
    block: int
    group: int
    warps: int


def logits_tile(vocabulary: int, dtype: torch.dtype) -> LogitsTile:
    """One program a row; up to 512 threads, each with two 16-byte accesses under way (four in fp32)."""
    width = triton.cdiv(vocabulary, 16) * 16
    block = min(8192, max(512, triton.next_power_of_2(width)))
    return LogitsTile(width, block, 16 // dtype.itemsize, max(1, block // 512))


def chunk_rows(rows: int, vocabulary: int, dtype: torch.dtype, chunk: int | None = None) -> int:
    """Rows of a chunk: as many as :data:`CHUNK_BYTES` hold (or ``chunk``), then evened out over the chunks.

    Raises:
        ValueError: if ``chunk`` is less than 1.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 row, not {chunk}")
    most = chunk or max(1, CHUNK_BYTES // (vocabulary * dtype.itemsize))
    if most >= rows:
        return max(1, rows)
    even = triton.cdiv(rows, triton.cdiv(rows, most))
    tiles = triton.cdiv(even, 128) * 128  # whole tiles of the matrix product
    return tiles if tiles <= most else even


def logits_buffer(rows: int, vocabulary: int, like: torch.Tensor) -> torch.Tensor:
    """An uninitialised (rows, V) view with rows 128 bytes aligned, whatever V is."""
    stride = triton.cdiv(vocabulary, 64) * 64
    return torch.empty((rows, stride), dtype=like.dtype, device=like.device)[:, :vocabulary]


def _blocks(
    weight_VD: torch.Tensor | HeadWeight, dtype: torch.dtype
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(start, stop, weight rows) over the vocabulary: one block for a tensor."""
    vocabulary, width = weight_VD.shape
    if isinstance(weight_VD, torch.Tensor):
        yield 0, vocabulary, weight_VD
        return
    step = max(256, BLOCK_BYTES // (width * dtype.itemsize) // 256 * 256)
    for start in range(0, vocabulary, step):
        stop = min(start + step, vocabulary)
        yield start, stop, weight_VD.rows(start, stop, dtype)


def mean_weight(weight_VD: torch.Tensor | HeadWeight, dtype: torch.dtype) -> torch.Tensor:
    """The mean of the head's rows (D,), in fp32 (float64 for float64); ``dtype`` is what blocks expand to."""
    wide = accumulation_type(dtype)
    sums = [block_BD.sum(0, dtype=wide) for _, _, block_BD in _blocks(weight_VD, dtype)]
    return torch.stack(sums).sum(0) / weight_VD.shape[0]


def fill_logits(
    hidden_SD: torch.Tensor,
    weight_VD: torch.Tensor | HeadWeight,
    bias_V: torch.Tensor | None,
    out_SV: torch.Tensor,
) -> torch.Tensor:
    """hidden · weightᵀ + bias into ``out_SV``, in the type of ``hidden_SD``."""
    for start, stop, block_BD in _blocks(weight_VD, hidden_SD.dtype):
        if bias_V is None:
            torch.mm(hidden_SD, block_BD.T, out=out_SV[:, start:stop])
        else:
            torch.addmm(bias_V[start:stop], hidden_SD, block_BD.T, out=out_SV[:, start:stop])
    return out_SV


def logit_chunks(
    hidden_SD: torch.Tensor,
    weight_VD: torch.Tensor | HeadWeight,
    bias_V: torch.Tensor | None,
    chunk: int | None,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """(rows, their products with the head); the caller may overwrite products, and the next chunk does."""
    rows, vocabulary = hidden_SD.shape[0], weight_VD.shape[0]
    step = chunk_rows(rows, vocabulary, hidden_SD.dtype, chunk)
    buffer_SV = logits_buffer(min(step, rows), vocabulary, hidden_SD)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        yield part, fill_logits(hidden_SD[part], weight_VD, bias_V, buffer_SV[: part.stop - start])


def in_type_of(
    hidden_SD: torch.Tensor, weight_VD: torch.Tensor | HeadWeight, bias_V: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | HeadWeight, torch.Tensor | None]:
    """All three detached, tensors in the type of the hidden states, whose rows are contiguous."""
    if isinstance(weight_VD, torch.Tensor):
        weight_VD = weight_VD.detach().to(hidden_SD.dtype)
    bias_V = None if bias_V is None else bias_V.detach().to(hidden_SD.dtype)
    return addressable(hidden_SD.detach()), weight_VD, bias_V


def add_product(sum_MN: torch.Tensor, a_MK: torch.Tensor, b_KN: torch.Tensor, factor: float) -> None:
    """sum += factor · a · b with an fp32 (or float64) sum, whatever the type of a and b."""
    if a_MK.dtype == sum_MN.dtype:
        sum_MN.addmm_(a_MK, b_KN, alpha=factor)
    elif a_MK.is_cuda:
        torch.addmm(sum_MN, a_MK, b_KN, alpha=factor, out_dtype=sum_MN.dtype, out=sum_MN)
    else:
        sum_MN.addmm_(a_MK.to(sum_MN.dtype), b_KN.to(sum_MN.dtype), alpha=factor)


def gradient_scale(dtype: torch.dtype) -> float:
    """Factor that the gradient of the logits carries, and the product with the head takes off again."""
    return FP16_GRADIENT_SCALE if dtype == torch.float16 else 1.0


def scaled(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """x · factor, 0-d or one a row, with the product in the wider type and rounded once to x's."""
    factor = factor.reshape(-1, *[1] * (x.dim() - 1))  # a 0-d tensor would be rounded to x's type first
    return torch.mul(x, factor, out=torch.empty_like(x))


class Wanted(NamedTuple):
    """What a call needs beyond the losses: gradients, and statistics of the predictions."""

    hidden: bool = False
    weight: bool = False
    bias: bool = False
    statistics: bool = False

    @property
    def gradient(self) -> bool:
        """Whether any gradient is wanted."""
        return self.hidden or self.weight or self.bias


class HeadGradients(NamedTuple):
    """Gradients of hidden states (in their type), weight and bias (sums in fp32); None where not wanted."""

    hidden_SD: torch.Tensor | None
    weight_VD: torch.Tensor | None
    bias_V: torch.Tensor | None

    @classmethod
    def empty(
        cls, hidden_SD: torch.Tensor, weight_VD: torch.Tensor | HeadWeight, wanted: Wanted
    ) -> HeadGradients:
        """Room for what is ``wanted``, with nothing added yet."""
        wide, device = accumulation_type(hidden_SD.dtype), hidden_SD.device
        return cls(
            torch.empty(hidden_SD.shape, dtype=hidden_SD.dtype, device=device) if wanted.hidden else None,
            torch.zeros(weight_VD.shape, dtype=wide, device=device) if wanted.weight else None,
            torch.zeros(weight_VD.shape[0], dtype=wide, device=device) if wanted.bias else None,
        )

    def add(
        self,
        part: slice,
        dx_SV: torch.Tensor,
        hidden_SD: torch.Tensor,
        weight_VD: torch.Tensor | HeadWeight,
    ) -> None:
        """Add the share of rows ``part``; ``dx_SV`` is their products' gradient · :func:`gradient_scale`."""
        factor = 1 / gradient_scale(dx_SV.dtype)
        if self.hidden_SD is not None:
            _hidden_gradient(dx_SV, weight_VD, factor, self.hidden_SD[part])
        if self.weight_VD is not None:
            add_product(self.weight_VD, dx_SV.T, hidden_SD[part], factor)
        if self.bias_V is not None:
            self.bias_V.add_(dx_SV.sum(0, dtype=self.bias_V.dtype), alpha=factor)

    def times(self, factor: torch.Tensor) -> HeadGradients:
        """All multiplied by a 0-d tensor."""
        return HeadGradients(*(None if each is None else scaled(each, factor) for each in self))

    def as_parameters(
        self, weight_VD: torch.Tensor | HeadWeight, bias_V: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """All three, weight's and bias's in the types of the parameters."""
        of_weight_VD, of_bias_V = self.weight_VD, self.bias_V
        if of_weight_VD is not None and isinstance(weight_VD, torch.Tensor):
            of_weight_VD = of_weight_VD.to(weight_VD.dtype)
        if of_bias_V is not None and bias_V is not None:
            of_bias_V = of_bias_V.to(bias_V.dtype)
        return self.hidden_SD, of_weight_VD, of_bias_V


def _hidden_gradient(
    gradient_SV: torch.Tensor, weight_VD: torch.Tensor | HeadWeight, factor: float, out_SD: torch.Tensor
) -> None:
    """factor · gradient · weight into ``out_SD``; over a head's blocks the sum is kept in fp32."""
    if isinstance(weight_VD, torch.Tensor):
        torch.addmm(out_SD, gradient_SV, weight_VD, beta=0, alpha=factor, out=out_SD)
        return
    sum_SD = torch.zeros(out_SD.shape, dtype=accumulation_type(out_SD.dtype), device=out_SD.device)
    for start, stop, block_BD in _blocks(weight_VD, gradient_SV.dtype):
        add_product(sum_SD, gradient_SV[:, start:stop], block_BD, factor)
    out_SD.copy_(sum_SD)
