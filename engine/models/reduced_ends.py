"""A frozen input embedding and output head in 8 or 4 bits: of a large vocabulary they are gigabytes.

One table holds the rows; embedding and head read it, the same one where the weights are tied. Looked up, a
row is expanded for its token; as a head, blocks of rows are expanded one after another, so the dense matrix
never stands whole. int8 has a scale a row, nf4 is double-quantised (arXiv:2305.14314).

Legend: V tokens of the vocabulary, D width, T tokens of a batch.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from whet.kernels.int8 import dequantize_int8
from whet.kernels.nf4 import Nf4Weight, dequantize_nf4, quantize_nf4
from whet.kernels.vocabulary_head import HeadWeight

from ..errors import WhetError
from .fp8 import KeepsTypes

BLOCK_ROWS = 8192
"""Rows of a head expanded at once where it is called as a module, and rows rounded at once."""


class Table(HeadWeight, Protocol):
    """Rows in fewer bits, standing for a matrix (V, D) of ``dtype``."""

    dtype: torch.dtype

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the ids (T,), dense (T, D)."""
        ...


class Int8Table(KeepsTypes):
    """int8 with the largest magnitude of each row: about 0.7 % off for normal weights.

    Args:
        weight_VD: what to round; not kept.
    """

    def __init__(self, weight_VD: torch.Tensor) -> None:
        super().__init__()
        self.dtype, self.shape = weight_VD.dtype, weight_VD.shape
        data_VD = torch.empty(self.shape, dtype=torch.int8, device=weight_VD.device)
        largest_V = torch.empty(len(weight_VD), dtype=torch.float32, device=weight_VD.device)
        for start in range(0, len(weight_VD), BLOCK_ROWS):
            rows = weight_VD[start : start + BLOCK_ROWS].float()
            largest = rows.abs().amax(1)
            data_VD[start : start + BLOCK_ROWS] = (rows * (127 / largest.clamp_min(1e-30))[:, None]).round()
            largest_V[start : start + BLOCK_ROWS] = largest
        self.register_buffer("data", data_VD)
        self.register_buffer("largest", largest_V)
        self.data: torch.Tensor
        self.largest: torch.Tensor

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        return dequantize_int8(self.data[start:stop], self.largest[start:stop], dtype=dtype)

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        return dequantize_int8(self.data[ids], self.largest[ids], dtype=self.dtype)


class Nf4Table(KeepsTypes):
    """4-bit normal float in blocks of 64: about 9 % off for normal weights.

    Args:
        weight_VD: what to round, D a multiple of 64; not kept.
    """

    def __init__(self, weight_VD: torch.Tensor) -> None:
        super().__init__()
        self.dtype, self.shape = weight_VD.dtype, weight_VD.shape
        held = quantize_nf4(weight_VD)
        self.blocksize, self.nested_blocksize = held.blocksize, held.nested_blocksize
        for name, tensor in held.tensors().items():
            self.register_buffer(name, tensor)

    @property
    def held(self) -> Nf4Weight:
        rows, columns = self.shape
        return Nf4Weight(
            **dict(self.named_buffers()),
            shape=(rows, columns),
            blocksize=self.blocksize,
            nested_blocksize=self.nested_blocksize,
        )

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        return dequantize_nf4(self.held, dtype=dtype, start=start, stop=stop)

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        """A row is whole blocks, so its codes and scales are taken out and expanded as a weight of T rows."""
        held, (rows, columns) = self.held, self.shape
        blocks = columns // self.blocksize
        block_TB = ids[:, None] * blocks + torch.arange(blocks, device=ids.device)
        scale_TB = held.absmax[block_TB]
        if held.nested_absmax is not None and held.nested_code is not None and held.offset is not None:
            scale_TB = (
                held.nested_code[scale_TB.int()] * held.nested_absmax[block_TB // self.nested_blocksize]
            )
            scale_TB = scale_TB + held.offset
        packed = held.packed.view(rows, columns // 2)[ids].view(-1)
        taken = Nf4Weight(packed, scale_TB.view(-1), held.code, (len(ids), columns), self.blocksize)
        return dequantize_nf4(taken, dtype=self.dtype)


TABLES = {"int8": Int8Table, "nf4": Nf4Table}


class ReducedEmbedding(nn.Embedding):
    """An embedding whose rows lie in a table. ``weight`` is the table, which knows its shape and type.

    Families scale what they look up in subclasses of their own; see :func:`_with_table`.
    """

    table: Any

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.table.lookup(input_ids.reshape(-1))
        return rows.view(*input_ids.shape, -1)


class ReducedHead(nn.Module):
    """A head whose rows lie in a table. ``weight`` is the table, which fused losses read block by block.

    Args:
        table: of the rows.
        bias: of the logits.
    """

    def __init__(self, table: Any, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.table, self.bias = table, bias
        self.out_features, self.in_features = table.shape

    @property
    def weight(self) -> Any:
        return self.table

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        blocks = range(0, self.out_features, BLOCK_ROWS)
        stops = [min(start + BLOCK_ROWS, self.out_features) for start in blocks]
        rows = (self.table.rows(*part, hidden.dtype) for part in zip(blocks, stops, strict=True))
        logits = torch.cat([F.linear(hidden, block) for block in rows], dim=-1)
        return logits if self.bias is None else logits + self.bias.to(logits.dtype)


def reduce_ends(model: Any, embedding: str, head: str) -> None:
    """Hold a causal model's embedding and head in fewer bits from now on; changes the instance.

    Args:
        model: transformers' causal model, before an adapter is added.
        embedding: ``16bit``, ``int8`` or ``nf4``.
        head: likewise; the same where both share their weight.

    Raises:
        WhetError: ``model.ends`` for a tied model with two ways of holding one weight, or a width that nf4
            cannot cut in blocks.
    """
    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    tied = inner.weight is outer.weight
    if tied and embedding != head:
        raise WhetError(
            "model.ends",
            f"Embedding and head are tied: one weight cannot be held as {embedding} and as {head}.",
            "Set model.embedding_precision and model.head_precision to the same.",
        )
    shared: nn.Module | None = None
    if head != "16bit":
        table = _table(outer.weight.detach(), head)
        model.set_output_embeddings(ReducedHead(table, outer.bias))
        shared = table if tied else None
    del outer
    if embedding != "16bit":
        _with_table(inner, _table(inner.weight.detach(), embedding) if shared is None else shared)


def _table(weight_VD: torch.Tensor, precision: str) -> nn.Module:
    if precision == "nf4" and weight_VD.shape[1] % 64:
        raise WhetError(
            "model.ends",
            f"nf4 cuts rows in blocks of 64, and the embedding's {weight_VD.shape[1]} columns leave a rest.",
            "Hold embedding and head in int8.",
        )
    return TABLES[precision](weight_VD)


def _with_table(embedding: nn.Embedding, table: nn.Module) -> None:
    """Let an embedding read a table: its class gets ReducedEmbedding's lookup under its own forward pass, so
    that what a family multiplies by stays."""
    plain = type(embedding)
    name = f"Reduced{plain.__name__}"
    del embedding.weight
    embedding.table = table  # type: ignore[assignment]
    bases = (ReducedEmbedding,) if plain is nn.Embedding else (plain, ReducedEmbedding)
    attributes = {"weight": property(lambda self: self.table), "__module__": __name__}
    embedding.__class__ = type(name, bases, attributes)
