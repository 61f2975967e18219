"""The importance matrix: how strongly each input column of each weight is used, in llama.cpp's own file form.

A quantiser that knows it spends its bits on the columns that matter. For every weight it holds the sum of the
squares of what was multiplied by each column, and how many positions that was; a mixture of experts has a row
and a count for each expert. Light until it measures, and then another process does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import WhetError
from .native import Progress, patience_for, run_native
from .reading import open_gguf, value_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUMS, COUNTS = ".in_sum2", ".counts"
CHUNK = 512
"""Positions in what llama.cpp calls a chunk."""
FLOOR = 1e-6
"""Share of a weight's mean that a column gets which was never used. Without it llama.cpp loses whole blocks:
q4_0 of a tiny model measured 1.34 nat instead of 0.18 when the rows left 64 columns of each weight unused."""


@dataclass(frozen=True)
class Importance:
    """What was measured.

    Args:
        sums: name of the tensor in the GGUF -> float32 [experts, columns]; one expert for a plain matrix.
        counts: the same names -> float32 [experts], positions that were multiplied.
        origin: the rows, in words; a file's name.
    """

    sums: dict[str, NDArray[np.float32]]
    counts: dict[str, NDArray[np.float32]]
    origin: str

    @property
    def positions(self) -> int:
        """Positions of the rows it was measured on."""
        plain = [int(count[0]) for count in self.counts.values() if len(count) == 1]
        return max(plain, default=max((int(count.max()) for count in self.counts.values()), default=0))

    def means(self) -> dict[str, NDArray[np.float32]]:
        """Mean squares as the quantiser takes them, [experts * columns]; ones for an expert never asked."""
        return {name: _means(sums, self.counts[name]).ravel() for name, sums in self.sums.items()}

    def save(self, path: Path) -> Path:
        """Write it as llama-imatrix does, so that llama.cpp's tools read it too."""
        from gguf import GGUFWriter

        writer = GGUFWriter(path, "imatrix")
        try:
            writer.add_type("imatrix")
            writer.add_array("imatrix.datasets", [self.origin])
            writer.add_uint32("imatrix.chunk_count", -(-self.positions // CHUNK))
            writer.add_uint32("imatrix.chunk_size", CHUNK)
            for name, sums in sorted(self.sums.items()):
                writer.add_tensor(name + SUMS, sums.astype(np.float32))
                writer.add_tensor(name + COUNTS, self.counts[name].astype(np.float32).reshape(-1, 1))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        return path

    @classmethod
    def load(cls, path: Path) -> Importance:
        """Read a matrix of ours or of llama-imatrix. Raises WhetError ``gguf.not_importance``."""
        try:
            reader = open_gguf(path)
        except WhetError as error:
            raise _not_importance(path, error.message) from error
        kind, origins = reader.fields.get("general.type"), reader.fields.get("imatrix.datasets")
        if kind is None or value_of(kind, path) != "imatrix":
            raise _not_importance(path, "its general.type is not imatrix")
        found = {tensor.name: np.array(tensor.data, dtype=np.float32) for tensor in reader.tensors}
        names = [name.removesuffix(SUMS) for name in found if name.endswith(SUMS)]
        counts = {name: found[name + COUNTS].reshape(-1) for name in names if name + COUNTS in found}
        if not names or len(counts) < len(names):
            raise _not_importance(path, "it lacks sums or counts")
        try:
            sums = {name: found[name + SUMS].reshape(len(counts[name]), -1) for name in names}
        except ValueError as error:
            raise _not_importance(path, f"its sums and counts do not agree: {error}") from error
        origin = ", ".join(str(one) for one in value_of(origins, path)) if origins is not None else path.name
        return cls(sums, counts, origin)


def measure(
    model_dir: Path,
    source: Path,
    rows: Sequence[Sequence[int]],
    out: Path,
    origin: str,
    progress: Progress | None = None,
) -> Path:
    """Run the trained model over ``rows`` and write what its weights were multiplied with to ``out``.

    Args:
        model_dir: the merged model, as transformers loads it.
        source: the GGUF made of it, whose tensors name the entries.
        rows: token ids.
        out: the matrix's file.
        origin: the rows in words.
        progress: (positions done, positions in all).

    Raises:
        WhetError: ``gguf.importance_failed`` when transformers cannot run the model or a weight of the file
            met none of its multiplications; those of :func:`.native.run_native`.
    """
    request: dict[str, Any] = {
        "model_dir": str(model_dir),
        "source": str(source),
        "rows": [list(row) for row in rows],
        "out": str(out),
        "origin": origin,
    }
    module = "whet.engine.export.gguf.importance_process"
    run_native(module, request, progress, patience_for(model_dir, source))
    return out


def _means(sums: NDArray[np.float32], counts: NDArray[np.float32]) -> NDArray[np.float32]:
    asked = counts[:, None] > 0
    means = np.where(asked, sums / np.maximum(counts, 1)[:, None], 1.0)
    floor = FLOOR * means.mean(axis=1, keepdims=True)
    result: NDArray[np.float32] = np.maximum(means, floor).astype(np.float32)
    return result


def _not_importance(path: Path, why: str) -> WhetError:
    return WhetError(
        "gguf.not_importance",
        f"{path} is no importance matrix in GGUF form: {why}.",
        "Give the rows themselves (text, JSONL, CSV, Parquet), or what `llama-imatrix -o matrix.gguf` wrote.",
    )
