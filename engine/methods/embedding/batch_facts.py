"""What the batches of an embedding model will hold: texts that are right and wrong at once, and prompts.

Light: of the rows only hashes are kept, eight bytes a text, and only where batches may repeat a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...models.sentence_folder import configured_prompts
from .suiting import IN_BATCH, loss_name

if TYPE_CHECKING:
    import numpy as np

    from ..stored_rows import StoredRows
    from .section import EmbeddingSection

ASKED = ("anchor", "positive")
"""Columns whose texts belong together; the others are wrong answers."""


@dataclass(frozen=True)
class BatchFacts:
    """Of a plan whose loss takes the other rows of a batch for wrong answers.

    Args:
        rows: of the training data.
        batch_size: rows of a batch.
        repeated: rows whose anchor or positive stands in another row too.
        expected: share of rows that meet such a row in their own batch; 0 where the sampler prevents it.
        prompts: that the model's folder configures, ``query`` and ``document``.
    """

    rows: int
    batch_size: int
    repeated: int = 0
    expected: float = 0.0
    prompts: Mapping[str, str] = field(default_factory=dict)


def batch_facts(section: EmbeddingSection, rows: StoredRows) -> BatchFacts | None:
    """None for losses that read scores or labels, or only a row's own texts."""
    if loss_name(section, rows.layout) not in IN_BATCH:
        return None
    prompts = configured_prompts(rows.model.path)
    count, size = rows.report.train.rows, rows.batch_size
    if section.no_duplicates:
        return BatchFacts(count, size, prompts=prompts)
    others = twins(rows.train)
    return BatchFacts(count, size, int((others > 0).sum()), meeting(others, size), prompts)


def twins(table: Path) -> np.ndarray:
    """For each row of a stored table, how often its anchor and its positive stand in other rows."""
    import numpy as np
    import pyarrow as pa

    parts: dict[str, list[np.ndarray]] = {}
    with pa.memory_map(str(table)) as source:
        for batch in pa.ipc.open_stream(source):
            for name in batch.schema.names:
                if name != "row":
                    hashes = map(hash, batch[name].to_pylist())
                    parts.setdefault(name, []).append(np.fromiter(hashes, np.int64, batch.num_rows))
    columns = {name: np.concatenate(hashed) for name, hashed in parts.items()}
    _, codes, counts = np.unique(
        np.concatenate(list(columns.values())), return_inverse=True, return_counts=True
    )
    coded = dict(zip(columns, np.split(codes, len(columns)), strict=True))
    others = np.zeros(len(coded["anchor"]), np.int64)
    for name in ASKED:
        others += counts[coded[name]] - sum(coded[name] == column for column in coded.values())
    return others


def meeting(others: np.ndarray, batch_size: int) -> float:
    """Share of rows that a shuffled batch is expected to bring together with one of their ``others``."""
    import numpy as np

    drawn = np.arange(min(batch_size, len(others)) - 1)  # the rest of a row's batch, one by one
    left = len(others) - 1 - drawn
    kinds, rows = np.unique(others, return_counts=True)
    apart = np.clip((left - kinds[:, None]) / left, 0, 1).prod(axis=1)
    return float(np.average(1 - apart, weights=rows))
