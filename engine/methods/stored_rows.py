"""What a method is shown of its prepared rows before it is planned, so that it refuses what it cannot learn.

Light: only the one column that is asked for is read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

    from ..data.inspection import DataReport
    from ..models.facts import ModelFacts


@dataclass(frozen=True)
class StoredRows:
    """The training rows of a plan, and the settings that decide whether they can be learnt.

    Args:
        report: of the prepared data.
        train: their Arrow file.
        model: that is to be trained.
        batch_size: rows of a micro-batch.
        base_precision: how the base weights are held.
    """

    report: DataReport
    train: Path
    model: ModelFacts
    batch_size: int
    base_precision: str

    @property
    def layout(self) -> str:
        """Its name."""
        return self.report.format.name

    def range_of(self, column: str) -> tuple[float, float]:
        """The least and the largest number of a column."""
        import pyarrow.compute as pc

        seen = pc.min_max(self._column(column)).as_py()
        return seen["min"], seen["max"]

    def counts_of(self, column: str) -> Counter[str]:
        """How many rows have each text of a column."""
        seen = self._column(column).value_counts().to_pylist()
        return Counter({one["values"]: one["counts"] for one in seen})

    def sample_of(self, column: str) -> list[str]:
        """Texts of a column in the first part of the file that is read at once."""
        import pyarrow as pa

        with pa.memory_map(str(self.train)) as source:
            texts: list[str] = pa.ipc.open_stream(source).read_next_batch()[column].to_pylist()
        return texts

    def _column(self, name: str) -> pyarrow.ChunkedArray:
        import pyarrow as pa

        with pa.memory_map(str(self.train)) as source:
            return pa.ipc.open_stream(source).read_all()[name]
