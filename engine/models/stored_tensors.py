"""Tensors in safetensors files, found by their headers and read row by row. Light: numpy, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .own_files import read_header

if TYPE_CHECKING:
    import numpy as np

FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""safetensors' names and how numpy reads them; bf16 as the upper half of fp32."""
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: ``start`` is its first byte in ``file``, ``dtype`` safetensors' name."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def rows_in_all(self) -> int:
        """Along the first dimension; 1 for a single number."""
        return self.shape[0] if self.shape else 1

    def bits(self) -> np.ndarray:
        """A two-dimensional tensor (rows, width), mapped and not read: floats, or bf16's bits as uint16."""
        import numpy as np

        return np.memmap(self.file, FLOATS[self.dtype], "r", self.start, self.shape)

    def rows(self, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(numbers, their rows in fp32), some thousand at a time."""
        import numpy as np

        stored = self.bits()
        for start in range(0, len(numbers), ROWS_AT_ONCE):
            part = numbers[start : start + ROWS_AT_ONCE]
            taken = stored[part]
            if self.dtype == "BF16":
                taken = (taken.astype(np.uint32) << 16).view(np.float32)
            yield part, taken.astype(np.float32, copy=False)


def stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """All tensors by name; reads the headers only. Raises WhetError as :func:`.own_files.read_header`."""
    found: dict[str, StoredTensor] = {}
    for path in files:
        header, data = read_header(path)
        for name, entry in header.items():
            if name != "__metadata__":
                start = data + entry["data_offsets"][0]
                found[name] = StoredTensor(path, entry["dtype"], tuple(entry["shape"]), start)
    return found
