"""A model folder written again with its linear layers in few bits, streamed, whole or absent. Needs torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from ...errors import WhetError
from ..base_weights import BaseWeights
from ..files import new_folder, require_space
from ..merging import REPORT, check_place, copy_tokenizer, target_dtype
from .linears import Linears
from .memory import BLOCK_BYTES, block_rows
from .shards import SHARD_BYTES, ShardWriter


@dataclass
class TargetReport:
    """What was written; ``notes`` are sentences a person should read."""

    path: str
    format: str
    quantised: int
    """Weights held in few bits."""
    kept: int
    """Tensors held in 16 bits."""
    bytes: int = 0
    notes: list[str] = field(default_factory=list)


class Weights:
    """One model folder's tensors in the 16-bit type that they are quantised from."""

    def __init__(self, model_dir: Path, memory: int) -> None:
        self.source, self.memory = BaseWeights(model_dir), memory
        if self.source.rounding is not None:
            raise WhetError(
                "export.quantized_source",
                f"{model_dir} holds {self.source.rounding} weights already.",
                "Start from the merged 16-bit weights.",
            )
        self.dtype = target_dtype(self.source, "auto")
        self.names = self.source.names()

    def dtype_of(self, name: str) -> torch.dtype:
        own = self.source.dtype_of(name)
        return self.dtype if own.is_floating_point else own

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(name)

    def whole(self, name: str) -> torch.Tensor:
        return self.source.tensor(name).to(self.dtype_of(name))

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Rows that fit into memory, one block after another."""
        shape, dtype = self.shape(name), self.dtype_of(name)
        rows = shape[0] if shape else 1
        step = block_rows(shape, self.memory) if shape else 1
        for start in range(0, rows, step):
            yield self.source.rows(name, start, start + step).to(dtype)


class Encoding(Protocol):
    """How one format stores a linear layer's weight."""

    format: str

    def parts(self, name: str) -> list[str]:
        """Names of the tensors that stand for the weight."""

    def bytes(self, shape: tuple[int, ...]) -> int:
        """At most, of all of them."""

    def write(self, writer: ShardWriter, weights: Weights, name: str) -> None:
        """Add them to the file."""

    def config(self, dtype: torch.dtype, left_out: list[str]) -> dict[str, Any]:
        """``quantization_config`` of config.json; ``left_out`` are linear layers that stay in 16 bits."""


def rewrite(
    model_dir: Path,
    out_dir: Path,
    encoding: Encoding,
    linears: Linears,
    progress: Callable[[float, float], None] | None = None,
    *,
    memory: int = BLOCK_BYTES,
    shard_bytes: int = SHARD_BYTES,
) -> TargetReport:
    """Write ``out_dir`` as ``model_dir`` with the weights of its linear layers encoded.

    Raises:
        WhetError: ``export.quantized_source``, ``export.unknown_layout`` when a chosen weight is not in the
            files, ``export.exists``, ``export.disk_full``, ``merge.no_weights``.
    """
    weights, chosen = Weights(model_dir, memory), linears.weights
    missing = sorted(chosen - set(weights.names))
    if missing:
        raise WhetError(
            "export.unknown_layout",
            f"{model_dir} lacks {len(missing)} weights of its model class by name: {', '.join(missing[:3])}.",
            "Its files are laid out otherwise than its class; export 16-bit weights instead.",
        )
    check_place(out_dir)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    require_space(out_dir.parent, _bytes(weights, encoding, chosen) + (64 << 20))
    report = TargetReport(str(out_dir), encoding.format, len(chosen), len(weights.names) - len(chosen))
    parts = [part for name in weights.names for part in (encoding.parts(name) if name in chosen else [name])]
    with new_folder(out_dir) as partial:
        writer = ShardWriter(partial, parts, shard_bytes)
        for done, name in enumerate(weights.names, 1):
            if name in chosen:
                encoding.write(writer, weights, name)
            else:
                writer.stream(name, weights.dtype_of(name), weights.shape(name), weights.blocks(name))
            if progress is not None:
                progress(done, len(weights.names))
        report.bytes = writer.finish()
        config = dict(weights.source.config)
        config["dtype"] = str(weights.dtype).removeprefix("torch.")
        config["quantization_config"] = encoding.config(weights.dtype, linears.heads)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        copy_tokenizer(model_dir, model_dir, partial)
        (partial / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


def _bytes(weights: Weights, encoding: Encoding, chosen: Collection[str]) -> int:
    return sum(
        encoding.bytes(weights.shape(name))
        if name in chosen
        else math.prod(weights.shape(name)) * weights.dtype_of(name).itemsize
        for name in weights.names
    )
