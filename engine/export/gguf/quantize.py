"""Smaller GGUF files from a 16- or 32-bit one, by llama.cpp's own quantiser in a subprocess."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ...errors import WhetError
from ..files import atomic_file
from .native import Progress, run_native
from .types import find_type

# Room for what the size estimate does not know: metadata and the tokens' text are copied as they are.
HEADROOM = 1.05


@dataclass(frozen=True)
class QuantizeReport:
    """What was written."""

    path: Path
    type: str
    bytes: int
    tensor_types: dict[str, int]
    """ggml type name -> number of tensors; more than the one asked for is normal for mixed types."""
    fallbacks: int
    """Tensors that llama.cpp gave another type since their rows do not divide into its blocks of 256."""


def quantize(
    source: Path, out: Path, type: str, progress: Progress | None = None, threads: int | None = None
) -> QuantizeReport:
    """Quantise the GGUF ``source`` (f32, f16 or bf16) to ``type``, written to ``out`` whole or not at all.

    Raises:
        WhetError: ``gguf.unknown_type``, ``gguf.needs_importance_matrix``, ``gguf.source_missing``,
            ``gguf.quantize_failed`` (with llama.cpp's reason), ``gguf.native_crash``, ``export.disk_full``.
    """
    kind = find_type(type)
    if not source.is_file():
        raise WhetError(
            "gguf.source_missing", f"There is no GGUF file at {source}.", "Convert the model to f16 first."
        )
    ratio = min(1.0, kind.bits_per_weight / 16)
    needed = int(source.stat().st_size * ratio * HEADROOM) + (1 << 20)
    with atomic_file(out, needed) as partial:
        answer = run_native(
            "whet.engine.export.gguf.quantize_process",
            {"source": str(source), "out": str(partial), "type": kind.name, "threads": threads},
            progress,
        )
        counts = tensor_types(partial)
    return QuantizeReport(out, kind.name, out.stat().st_size, counts, answer["fallbacks"])


def tensor_types(path: Path) -> dict[str, int]:
    """How many tensors of each ggml type the file holds, most frequent first."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    counts = Counter(tensor.tensor_type.name.lower() for tensor in reader.tensors)
    return dict(counts.most_common())
