"""Token rows to compute an importance matrix from: those a run trained on, or those of a file. Light.

A run's are the rows it learnt from and not those it held out: the proof that follows is measured on these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.rows import RowError
from ..data.sources import source_files
from ..data.token_store import prepare
from ..data.tokenization import RowTokenizer, TokenizerFiles
from ..errors import WhetError
from ..recipe import ExportSection, Recipe
from .gguf.types import GGUFType, check_types, importance_missing
from .held_out import SCANNED, read_examples, token_row

if TYPE_CHECKING:
    import pyarrow as pa

    from ..plan import Plan

Rows = list[list[int]]
OWN_ROWS = "rows"
"""``export.imatrix``: the rows that the run trained on."""
TOKENS = 8_192
"""Most positions the model is run over. On the demo 512 served as well as 22,000: q2_k loses 0.23
nat with either, 0.28 without a matrix."""
ROW_TOKENS = 512
"""Longer rows are cut into pieces of this length."""


def is_matrix(given: str) -> bool:
    """Whether ``export.imatrix`` names a matrix that is there already."""
    return given.lower().endswith(".gguf")


def check_importance(kinds: Sequence[GGUFType], given: str | None, own_rows: bool) -> None:
    """What speaks against an importance matrix, before anything is written.

    Args:
        kinds: the types asked for.
        given: ``export.imatrix``.
        own_rows: whether there are rows without naming any.

    Raises:
        WhetError: ``gguf.needs_importance_matrix``; ``gguf.not_importance`` or ``data.*`` for a file that is
            not there or no such.
    """
    if given in (None, OWN_ROWS):
        wanting = next((kind for kind in kinds if kind.needs_importance or given), None)
        if wanting is not None and not own_rows:
            raise importance_missing(wanting)
    elif is_matrix(given):
        from .gguf.importance import Importance

        Importance.load(Path(given))
    else:
        source_files(given)


def importance_refusal(section: ExportSection) -> WhetError | None:
    """Why the export of a run would have no importance matrix: the file it names is not there, or no such."""
    try:
        check_importance(check_types(section.gguf), section.imatrix, own_rows=True)
    except WhetError as error:
        return error
    return None


def rows_of(given: str | None, model_dir: Path, own_rows: Callable[[], Rows] | None) -> tuple[Rows, str]:
    """The rows meant by ``export.imatrix``, and where they are from in words.

    Raises:
        WhetError: those of ``own_rows`` and :func:`file_rows`.
    """
    if given not in (None, OWN_ROWS):
        return file_rows(given, model_dir), Path(given).name
    assert own_rows is not None, "check_importance refuses this"
    return own_rows(), "rows trained on"


def training_rows(plan: Plan, model_dir: Path, tokens: int = TOKENS) -> Rows:
    """Rows from all over a run's training data, as it was trained on; prepared again where that is gone.

    Raises:
        WhetError: those of :func:`whet.engine.data.token_store.prepare`.
    """
    import pyarrow as pa

    complete = plan.data.is_complete()
    file = plan.data.train if complete else prepare(plan.data_recipe(), model_dir).train
    with pa.memory_map(str(file)) as source:
        return spread_rows(_conversations(pa.ipc.open_stream(source).read_all()), tokens)


def _conversations(table: pa.Table) -> pa.ChunkedArray:
    """All ids of each stored row; of compared answers the chosen one's."""
    import pyarrow as pa

    if "input_ids" in table.column_names:
        return table["input_ids"]
    first = table.slice(0, SCANNED).to_pylist()
    return pa.chunked_array([pa.array([token_row(row)["input_ids"] for row in first], pa.list_(pa.int32()))])


def spread_rows(column: pa.ChunkedArray, tokens: int = TOKENS) -> Rows:
    """Rows from all over a column of token ids, ``tokens`` of them at most."""
    import pyarrow.compute as pc

    total = pc.sum(pc.list_value_length(column)).as_py() or 0
    step = max(1, total // tokens)
    return list(_pieces((column[number].as_py() for number in range(0, len(column), step)), tokens))


def file_rows(source: str, model_dir: Path, tokens: int = TOKENS) -> Rows:
    """The first rows of a file, folder or data set in any form that training reads; plain text is one row.

    Raises:
        WhetError: ``data.*`` for a source that cannot be read, ``template.missing`` for conversations where
            the model has no template, ``gguf.no_importance_rows`` when nothing in it gives a row.
    """
    recipe = Recipe.model_validate({"model": {"name": str(model_dir)}, "data": {"train": source}})
    tokenizer = RowTokenizer.from_files(TokenizerFiles.read(model_dir))
    rows = list(_pieces(_encoded(tokenizer, recipe), tokens))
    if not rows:
        raise WhetError(
            "gguf.no_importance_rows",
            f"{source} holds no row that an importance matrix could be computed from.",
            "Give text or rows like those the model will see: .txt, .jsonl, .csv or .parquet.",
        )
    return rows


def _encoded(tokenizer: RowTokenizer, recipe: Recipe) -> Iterator[list[int]]:
    assert isinstance(recipe.data.train, str)
    for example in read_examples(recipe.data.train, recipe, "train"):
        try:
            yield tokenizer.encode_examples([example], supervise="all")[0].input_ids
        except RowError:
            continue  # the template refuses this one


def _pieces(rows: Iterable[list[int]], tokens: int) -> Iterator[list[int]]:
    left = tokens
    for row in rows:
        for at in range(0, len(row), ROW_TOKENS):
            piece = row[at : at + min(ROW_TOKENS, left)]
            if not piece:
                return
            yield piece
            left -= len(piece)
