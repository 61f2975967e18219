"""Smaller GGUF files from a 16- or 32-bit one, by llama.cpp's own quantiser in a subprocess."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ...errors import WhetError
from ..files import atomic_file, disk_full_said
from .native import Progress, patience_for, run_native
from .reading import open_gguf
from .types import find_type, importance_missing

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
    source: Path,
    out: Path,
    type: str,
    progress: Progress | None = None,
    threads: int | None = None,
    importance: Path | None = None,
) -> QuantizeReport:
    """Quantise the GGUF ``source`` (f32, f16 or bf16) to ``type``, written to ``out`` whole or not at all.

    Memory beyond the mapped source stays near :data:`.quantize_process.BUFFER_BYTES`.

    Args:
        source: the file to read.
        out: the file to write.
        type: one of :data:`.types.GGUF_TYPES`.
        progress: called with (tensors done, tensors in all).
        threads: by default as many as there are processors.
        importance: a matrix that :func:`.importance.measure` or llama-imatrix wrote.

    Raises:
        WhetError: ``gguf.unknown_type``, ``gguf.needs_importance_matrix``, ``gguf.not_importance``,
            ``gguf.source_missing``, ``gguf.quantize_failed`` (with llama.cpp's reason), ``export.disk_full``,
            those of :func:`.native.run_native`.
    """
    kind = find_type(type)
    if kind.needs_importance and importance is None:
        raise importance_missing(kind)
    if not source.is_file():
        raise WhetError(
            "gguf.source_missing", f"There is no GGUF file at {source}.", "Convert the model to f16 first."
        )
    ratio = min(1.0, kind.bits_per_weight / 16)
    needed = int(source.stat().st_size * ratio * HEADROOM) + (1 << 20)
    with atomic_file(out, needed) as partial, disk_full_said(partial):
        answer = run_native(
            "whet.engine.export.gguf.quantize_process",
            {
                "source": str(source),
                "out": str(partial),
                "type": kind.name,
                "threads": threads,
                "importance": str(importance) if importance is not None else None,
            },
            progress,
            patience_for(source),
        )
        counts = tensor_types(partial)
    return QuantizeReport(out, kind.name, out.stat().st_size, counts, answer["fallbacks"])


def tensor_types(path: Path) -> dict[str, int]:
    """How many tensors of each ggml type the file holds, most frequent first."""
    reader = open_gguf(path)
    counts = Counter(tensor.tensor_type.name.lower() for tensor in reader.tensors)
    return dict(counts.most_common())
