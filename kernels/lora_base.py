"""Frozen weights of linear layers that read the same input, as one matrix (N, K), however they are held.

Legend: T tokens, K inputs, N outputs of all layers together, R ranks of all layers together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from .fp8 import fp8_matmul, quantize_rows, transpose_fp8

Quantized = tuple[torch.Tensor, torch.Tensor]
"""Rows in FP8 with a scale each, as :func:`.fp8.quantize_rows` returns them."""


class Base(Protocol):
    """What a LoRA projection multiplies with.

    ``rides``: products may have R more columns, so that the LoRA update is in them: y = [x | t] [W | sB]^T.
    ``quantizes``: x is multiplied in FP8, and whoever makes x may hand over its quantised rows.
    """

    outputs: int
    inputs: int
    rides: bool
    quantizes: bool

    def forward(
        self,
        x_TX: torch.Tensor,
        sb_NR: torch.Tensor | None,
        bias_N: torch.Tensor | None,
        out_TN: torch.Tensor | None,
        quantized: Quantized | None = None,
    ) -> torch.Tensor:
        """[x | t] [W | sB]^T + bias where the base rides and ``sb_NR`` is given; else x W^T + bias.

        ``quantized`` are x's rows in FP8, where the base wants them and they are there already.
        """
        ...

    def backward(self, dy_TN: torch.Tensor, sb_NR: torch.Tensor | None) -> torch.Tensor:
        """dy [W | sB], (T, K + R), where the base rides and ``sb_NR`` is given; else dy W, (T, K)."""
        ...

    def room(self, rank: int) -> torch.Tensor | None:
        """A place for sB (N, rank) beside the weights, where they are kept with one."""
        ...


def _product(
    x_TX: torch.Tensor, w_NX: torch.Tensor, bias_N: torch.Tensor | None, out_TN: torch.Tensor | None
) -> torch.Tensor:
    if bias_N is None:
        return torch.mm(x_TX, w_NX.T, out=out_TN)
    return torch.addmm(bias_N.to(x_TX.dtype), x_TX, w_NX.T, out=out_TN)


class DenseBase:
    """Weights in 16 or 32 bits, kept side by side with room for sB; the layers' own weights become views."""

    rides = True
    quantizes = False

    def __init__(self, weights: Sequence[torch.Tensor], rank: int) -> None:
        self.outputs = sum(len(weight) for weight in weights)
        self.inputs = weights[0].shape[1]
        self.wide_NX = weights[0].new_zeros(self.outputs, self.inputs + rank)
        torch.cat([weight.detach() for weight in weights], out=self.wide_NX[:, : self.inputs])

    def views(self, outputs: Sequence[int]) -> list[torch.Tensor]:
        """The layers' own weights (n, K)."""
        return list(self.wide_NX[:, : self.inputs].split(list(outputs)))

    def room(self, rank: int) -> torch.Tensor | None:
        return self.wide_NX[:, self.inputs : self.inputs + rank]

    def _wide(self, sb_NR: torch.Tensor | None) -> torch.Tensor:
        return self.wide_NX if sb_NR is not None else self.wide_NX[:, : self.inputs]

    def forward(
        self,
        x_TX: torch.Tensor,
        sb_NR: torch.Tensor | None,
        bias_N: torch.Tensor | None,
        out_TN: torch.Tensor | None,
        quantized: Quantized | None = None,
    ) -> torch.Tensor:
        return _product(x_TX, self._wide(sb_NR), bias_N, out_TN)

    def backward(self, dy_TN: torch.Tensor, sb_NR: torch.Tensor | None) -> torch.Tensor:
        return dy_TN @ self._wide(sb_NR)


GROUP_BYTES = 64 * 2**20
"""Of expanded weights in one product: more would only make the workspace larger."""


def groups(outputs: Sequence[int], row_bytes: int) -> list[list[int]]:
    """Indices of the layers that are multiplied together: neighbours, up to :data:`GROUP_BYTES`.

    Args:
        outputs: of each layer.
        row_bytes: of an expanded weight's row.
    """
    found: list[list[int]] = []
    for index, rows in enumerate(outputs):
        together = sum(outputs[other] for other in found[-1]) + rows if found else 0
        if found and together * row_bytes <= GROUP_BYTES:
            found[-1].append(index)
        else:
            found.append([index])
    return found


class ExpandedBase:
    """Quantised weights, expanded for each product into a workspace that all layers share.

    Large ones take turns in it, see :func:`groups`.

    Args:
        parts: for each layer its outputs and a function that writes its weight into an (n, K) view.
        workspace: gives a buffer of (rows, columns) in a type; its content lives until the next call.
    """

    rides = True
    quantizes = False

    def __init__(
        self,
        parts: Sequence[tuple[int, Callable[[torch.Tensor], None]]],
        inputs: int,
        workspace: Callable[[int, int, torch.dtype], torch.Tensor],
    ) -> None:
        self.parts, self.inputs, self.workspace = list(parts), inputs, workspace
        self.outputs = sum(outputs for outputs, _ in self.parts)

    def room(self, rank: int) -> torch.Tensor | None:
        return None

    def _wide(self, sb_NR: torch.Tensor | None, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
        """[W | sB] group by group with the outputs it stands for; each lives until the next."""
        rank = 0 if sb_NR is None else sb_NR.shape[1]
        width, first = self.inputs + rank, 0
        for group in groups([outputs for outputs, _ in self.parts], width * dtype.itemsize):
            parts = [self.parts[index] for index in group]
            last = first + sum(outputs for outputs, _ in parts)
            wide_NX, start = self.workspace(last - first, width, dtype), 0
            for outputs, expand in parts:
                expand(wide_NX[start : start + outputs, : self.inputs])
                start += outputs
            if sb_NR is not None:
                wide_NX[:, self.inputs :] = sb_NR[first:last]
            yield slice(first, last), wide_NX
            first = last

    def forward(
        self,
        x_TX: torch.Tensor,
        sb_NR: torch.Tensor | None,
        bias_N: torch.Tensor | None,
        out_TN: torch.Tensor | None,
        quantized: Quantized | None = None,
    ) -> torch.Tensor:
        if out_TN is None:
            out_TN = x_TX.new_empty(len(x_TX), self.outputs)
        for part, wide_NX in self._wide(sb_NR, x_TX.dtype):
            _product(x_TX, wide_NX, None if bias_N is None else bias_N[part], out_TN[:, part])
        return out_TN

    def backward(self, dy_TN: torch.Tensor, sb_NR: torch.Tensor | None) -> torch.Tensor:
        dx_TX: torch.Tensor | None = None
        for part, wide_NX in self._wide(sb_NR, dy_TN.dtype):
            dx_TX = dy_TN[:, part] @ wide_NX if dx_TX is None else dx_TX.addmm_(dy_TN[:, part], wide_NX)
        assert dx_TX is not None
        return dx_TX


class Fp8Base:
    """Weights in FP8 (e4m3) with a scale a row; forward and input gradient multiply in FP8.

    Backward, dx = dy diag(scale) W8: the scales are folded into dy before its rows are quantised, and W8 is
    transposed for the product, since the units want both operands along the summed dimension. The LoRA
    update does not ride: it stays in 16 bits.

    Args:
        w8_NK: float8_e4m3fn, contiguous.
        scale_N: fp32.
        fast_accumulation: sum with fewer bits, see :func:`.fp8.fp8_matmul`.
    """

    rides = False
    quantizes = True

    def __init__(self, w8_NK: torch.Tensor, scale_N: torch.Tensor, *, fast_accumulation: bool = True) -> None:
        self.outputs, self.inputs = w8_NK.shape
        self.w8_NK, self.scale_N, self.fast_accumulation = w8_NK, scale_N, fast_accumulation
        self.ones_K = torch.ones(self.inputs, device=w8_NK.device)

    def room(self, rank: int) -> torch.Tensor | None:
        return None

    def weight(self) -> Quantized:
        """W8 and its scales, valid until the next product."""
        return self.w8_NK, self.scale_N

    def forward(
        self,
        x_TX: torch.Tensor,
        sb_NR: torch.Tensor | None,
        bias_N: torch.Tensor | None,
        out_TN: torch.Tensor | None,
        quantized: Quantized | None = None,
    ) -> torch.Tensor:
        x8_TK, scale_T = quantize_rows(x_TX) if quantized is None else quantized
        y_TN = fp8_matmul(
            x8_TK,
            scale_T,
            *self.weight(),
            out=out_TN,
            dtype=x_TX.dtype,
            use_fast_accum=self.fast_accumulation,
        )
        return y_TN if bias_N is None else y_TN.add_(bias_N)

    def backward(self, dy_TN: torch.Tensor, sb_NR: torch.Tensor | None) -> torch.Tensor:
        w8_NK, scale_N = self.weight()
        dy8_TN, scale_T = quantize_rows(dy_TN, column_scale_K=scale_N)
        return fp8_matmul(
            dy8_TN,
            scale_T,
            transpose_fp8(w8_NK),
            self.ones_K,
            dtype=dy_TN.dtype,
            use_fast_accum=self.fast_accumulation,
        )


class ExpandedFp8Base(Fp8Base):
    """Weights in four bits, expanded to FP8 for each product and multiplied there.

    Args:
        parts: for each layer its outputs and a function that writes its weight into an (n, K) view of
            float8_e4m3fn and returns the rows' scales.
        workspace: as for :class:`ExpandedBase`.
        device: of the weights.
    """

    def __init__(
        self,
        parts: Sequence[tuple[int, Callable[[torch.Tensor], torch.Tensor]]],
        inputs: int,
        workspace: Callable[[int, int, torch.dtype], torch.Tensor],
        device: torch.device,
        *,
        fast_accumulation: bool = True,
    ) -> None:
        self.parts, self.inputs, self.workspace = list(parts), inputs, workspace
        self.outputs = sum(outputs for outputs, _ in self.parts)
        self.fast_accumulation = fast_accumulation
        self.ones_K = torch.ones(inputs, device=device)

    def weight(self) -> Quantized:
        w8_NK = self.workspace(self.outputs, self.inputs, torch.float8_e4m3fn)
        pieces = w8_NK.split([outputs for outputs, _ in self.parts])
        scales = [expand(piece) for (_, expand), piece in zip(self.parts, pieces, strict=True)]
        return w8_NK, scales[0] if len(scales) == 1 else torch.cat(scales)
