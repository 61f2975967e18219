"""4-bit weights in bitsandbytes' layout: what is stored, and how a weight is quantised.

A weight (N, K) is read as one row-major run of N*K elements, cut into blocks of ``blocksize``. A block stores
its largest magnitude (``absmax``) and, for each element, the index of the code value nearest to element /
absmax. Two indices share a byte, the earlier element in the high nibble. With *double quantisation* the
absmax values are themselves stored in 8 bits: their mean (``offset``) is taken away, and blocks of
``nested_blocksize`` of them are coded with the dynamic 8-bit type (Dettmers et al. 2021, 8-bit Optimizers via
Block-wise Quantization, arXiv:2110.02861). NF4 and double quantisation: Dettmers et al. 2023, QLoRA,
arXiv:2305.14314, whose appendix E lists the NF4 values.

Legend: N output features, K input features, B blocks of the whole weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from .dynamic_code import dynamic_code

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
# Sign, two exponent bits, one mantissa bit; magnitudes over the largest, in the order of their bit patterns.
_FP4_MAGNITUDES = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
FP4 = (*(m / 12 for m in _FP4_MAGNITUDES), *(-m / 12 for m in _FP4_MAGNITUDES))
CODES: Mapping[str, tuple[float, ...]] = {"nf4": NF4, "fp4": FP4}

NESTED_BLOCKSIZE = 256
_LEAST_ABSMAX = 1e-38  # what a block of zeros divides by
_ELEMENTS_AT_A_TIME = 1 << 24


@dataclass(frozen=True)
class Nf4Weight:
    """A weight of 4-bit codes; plain tensors, all on one device.

    Args:
        packed: uint8 (ceil(N*K / 2),), the earlier of two elements in the high nibble.
        absmax: (B,), fp32, or uint8 indices into ``nested_code`` when doubly quantised.
        code: fp32 (16,), the values of the 4-bit indices, the largest magnitude of them 1.
        shape: (N, K).
        blocksize: elements that share an absmax.
        nested_absmax: fp32 (ceil(B / nested_blocksize),), or None when absmax is fp32.
        nested_code: fp32 (256,), with nested_absmax.
        offset: fp32 0-d, with nested_absmax: what is added to a decoded absmax.
        nested_blocksize: absmax values that share a nested_absmax.
    """

    packed: torch.Tensor
    absmax: torch.Tensor
    code: torch.Tensor
    shape: tuple[int, int]
    blocksize: int = 64
    nested_absmax: torch.Tensor | None = None
    nested_code: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    nested_blocksize: int = NESTED_BLOCKSIZE

    def __post_init__(self) -> None:
        rows, columns = self.shape
        blocks = -(-rows * columns // self.blocksize)
        size = -(-rows * columns // 2)
        if self.packed.numel() != size or self.absmax.numel() != blocks:
            raise ValueError(
                f"a {rows} x {columns} weight in blocks of {self.blocksize} has {size} bytes and {blocks} "
                f"absmax values, not {self.packed.numel()} and {self.absmax.numel()}"
            )
        if (self.absmax.dtype == torch.uint8) != self.nested:
            raise ValueError(
                f"absmax is {self.absmax.dtype} with nested_absmax {self.nested_absmax is not None}"
            )

    @property
    def nested(self) -> bool:
        """Whether the absmax values are quantised too."""
        return self.nested_absmax is not None

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.packed.device

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by field name, without those that are None."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}

    def to(self, device: torch.device | str) -> Nf4Weight:
        """The weight on another device."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def scales(self, first: int, last: int) -> torch.Tensor:
        """absmax of blocks first..last, decoded: fp32 (last - first,)."""
        absmax_B = self.absmax[first:last]
        if self.nested_absmax is None or self.nested_code is None or self.offset is None:
            return absmax_B.float()
        block_B = torch.arange(first, last, device=self.device) // self.nested_blocksize
        return self.nested_code[absmax_B.int()] * self.nested_absmax[block_B] + self.offset

    @classmethod
    def from_bnb(cls, quant_state: Any, data: torch.Tensor) -> Nf4Weight:
        """The weight behind a bitsandbytes ``QuantState`` and its packed data (any storage dtype); no copy.

        Raises:
            ValueError: for a weight that is not a matrix, or tensors that do not fit its shape.
        """
        if len(quant_state.shape) != 2:
            raise ValueError(f"a 4-bit weight has two dimensions, not {tuple(quant_state.shape)}")
        state2 = quant_state.state2
        return cls(
            packed=data.detach().reshape(-1).view(torch.uint8),
            absmax=quant_state.absmax,
            code=quant_state.code,
            shape=(int(quant_state.shape[0]), int(quant_state.shape[1])),
            blocksize=quant_state.blocksize,
            nested_absmax=None if state2 is None else state2.absmax,
            nested_code=None if state2 is None else state2.code,
            offset=quant_state.offset,
            nested_blocksize=NESTED_BLOCKSIZE if state2 is None else state2.blocksize,
        )


def _nearest(x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """Index of the nearest code value, uint8; of two equally near ones the smaller value's."""
    order = torch.argsort(code)
    ascending = code[order]
    index = torch.bucketize(x, (ascending[:-1] + ascending[1:]) / 2, out_int32=True)
    return order.to(torch.uint8)[index]


def _quantize_blocks(x_BE: torch.Tensor, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Code indices uint8 (B, E) and absmax fp32 (B,) of whole blocks of E elements."""
    x_BE = x_BE.float()
    absmax_B = x_BE.abs().amax(dim=1)
    normalized_BE = x_BE * (1.0 / absmax_B.clamp(min=_LEAST_ABSMAX))[:, None]
    return _nearest(normalized_BE.clamp_(-1, 1), code), absmax_B


def _quantize_run(x: torch.Tensor, code: torch.Tensor, blocksize: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`_quantize_blocks` for a flat run, whose last block may be short; indices are flat."""
    whole = x.numel() // blocksize * blocksize
    index, absmax_B = _quantize_blocks(x[:whole].view(-1, blocksize), code)
    if whole == x.numel():
        return index.view(-1), absmax_B
    # Quotient, not product with the reciprocal: the layout's own rounding for a short block.
    rest = x[whole:].float()
    largest = rest.abs().amax().clamp(min=_LEAST_ABSMAX)
    rest_index = _nearest((rest / largest).clamp_(-1, 1), code)
    return torch.cat([index.view(-1), rest_index]), torch.cat([absmax_B, largest[None]])


def quantize_nf4(
    w_NK: torch.Tensor, blocksize: int = 64, double: bool = True, *, code: str = "nf4"
) -> Nf4Weight:
    """Quantise a weight as bitsandbytes' ``quantize_4bit`` does, in plain torch.

    Works through the weight 16 million elements at a time: a few hundred MB beside it, whatever its size.

    Args:
        w_NK: (N, K), fp32, bf16 or fp16, on any device.
        blocksize: elements that share an absmax: a power of two from 32 to 4096.
        double: quantise the absmax values to 8 bits too.
        code: "nf4" or "fp4".

    Raises:
        ValueError: for an unknown code, a blocksize outside the list, or a weight that is not a matrix.
    """
    if code not in CODES:
        raise ValueError(f"unknown 4-bit code {code!r}; known are {', '.join(CODES)}")
    if blocksize not in (32, 64, 128, 256, 512, 1024, 2048, 4096):
        raise ValueError(f"blocksize {blocksize} is not a power of two from 32 to 4096")
    if w_NK.ndim != 2:
        raise ValueError(f"a 4-bit weight has two dimensions, not {tuple(w_NK.shape)}")
    rows, columns = w_NK.shape
    values = torch.tensor(CODES[code], dtype=torch.float32, device=w_NK.device)
    flat = w_NK.detach().reshape(-1)
    packed = torch.empty(-(-flat.numel() // 2), dtype=torch.uint8, device=w_NK.device)
    absmax_B = torch.empty(-(-flat.numel() // blocksize), dtype=torch.float32, device=w_NK.device)
    for start in range(0, flat.numel(), _ELEMENTS_AT_A_TIME):
        index, part = _quantize_run(flat[start : start + _ELEMENTS_AT_A_TIME], values, blocksize)
        absmax_B[start // blocksize :][: part.numel()] = part
        if index.numel() % 2:  # the nibble that pads the last byte codes zero
            index = torch.cat([index, _nearest(values.new_zeros(1), values)])
        packed[start // 2 :][: index.numel() // 2] = index[::2] << 4 | index[1::2]
    weight = Nf4Weight(packed, absmax_B, values, (rows, columns), blocksize)
    return _quantize_absmax(weight) if double else weight


def _quantize_absmax(weight: Nf4Weight) -> Nf4Weight:
    nested_code = dynamic_code(True, weight.device)
    offset = weight.absmax.mean() if weight.absmax.numel() else weight.absmax.new_zeros(())
    index_B, nested_absmax = _quantize_run(weight.absmax - offset, nested_code, NESTED_BLOCKSIZE)
    return replace(
        weight, absmax=index_B, nested_absmax=nested_absmax, nested_code=nested_code, offset=offset
    )
