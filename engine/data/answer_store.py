"""Compared or rated answers as tokens on disk, rendered exactly as for supervised fine-tuning.

An answer begins where the assistant's last turn does and ends with its end token; what a template writes
after that is nobody's to learn. Both answers of a row follow the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WhetError
from ..recipe import PreferenceSection, Recipe
from .answers import examples_of
from .batches import TokenBatch, hash_of
from .formats import Example, FormatGuess, renamed
from .inspection import DataReport
from .masking import IGNORE
from .row_flags import Odd
from .rows import RawRow, RowError
from .split_writer import SplitWriter
from .table_store import TableBatch, TableBuilder, TableWriter
from .tables import Layout, truth_of
from .template_facts import template_facts
from .tokenization import RowTokenizer
from .tokenizer_files import TokenizerFiles

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

ANSWERS = {"preference": ("chosen_ids", "rejected_ids"), "ratings": ("completion_ids",)}


@dataclass(frozen=True)
class Answered:
    """Tokens of a row, uncut: the prompt's, and each answer's."""

    prompt: list[int]
    answers: list[list[int]]


class AnswerWriter(TableWriter):
    """Stores prompt_ids, the answers' ids and, of rated rows, their label."""

    def schema(self) -> pyarrow.Schema:
        """Lists of int32; the label as ``true`` or ``false``."""
        import pyarrow as pa

        names = ["prompt_ids", *ANSWERS[self.layout.name]]
        columns = [(name, pa.list_(pa.int32())) for name in names]
        if self.layout.classes is not None:
            columns.append((self.layout.classes, pa.string()))
        return pa.schema([*columns, ("row", pa.int64())])

    def write(self, batch: TokenBatch, keep: np.ndarray, rows: np.ndarray, number: np.ndarray) -> None:
        """As the base class, without rows that the cut left no answer of."""
        import numpy as np

        sizes = np.frombuffer(batch.sizes, dtype=np.uint32)
        super().write(batch, keep & (sizes > 0), rows, number)


class AnswerBuilder(TableBuilder):
    """Rows that the chat template renders; their cut falls on the answers' ends."""

    def __init__(
        self, recipe: Recipe, model_dir: Path, out: Path, progress: Callable[[int], None] | None
    ) -> None:
        super().__init__(recipe, model_dir, out, progress)
        self.rows = RowTokenizer.from_files(TokenizerFiles.read(model_dir), recipe.data.template)

    def guess(self, source: str, rows: list[RawRow]) -> FormatGuess:
        """As the base class; refuses rows that the loss cannot use."""
        found = super().guess(source, rows)
        method = self.recipe.method
        if not isinstance(method, PreferenceSection):
            return found
        wanted = method.layout_of_loss()
        if wanted is not None and wanted != found.other:
            reads = {
                "preference": "pairs of answers (chosen, rejected)",
                "ratings": "answers with a verdict (completion, label)",
            }
            other = "kto" if found.other == "ratings" else "dpo"
            raise WhetError(
                "data.format",
                f"method.loss={method.loss} learns from {reads[wanted]}; the rows of {source} are "
                f"{reads[str(found.other)]}.",
                f"Set method.loss={other}, or auto.",
            )
        return found

    def split(self, name: str, drop: Iterable[str] = (), leaked: Iterable[int] = ()) -> SplitWriter:
        """Of the layout's columns."""
        assert self.layout is not None
        return AnswerWriter(self.layout, self.out / name, drop, leaked)

    def report(self, train: SplitWriter, seconds: float) -> DataReport:
        """With the template in force and what ends a turn."""
        renderer, rows = self.rows.renderer, self.rows
        end = renderer.end_of_turn if renderer else rows.eos_token
        return (
            super()
            .report(train, seconds)
            .model_copy(
                update={
                    "template": self.section.template or ("model" if renderer is not None else None),
                    "bos_token": rows.bos_token,
                    "end_of_turn": end,
                    "end_id": rows.tokenizer.token_to_id(end) if end else None,
                    "eos_id": rows.eos_id,
                    "template_facts": template_facts(rows),
                }
            )
        )

    def value_of(self, row: RawRow, layout: Layout) -> dict[str, Any]:
        """The row's tokens, its texts, and of rated rows their label."""
        value = renamed(row.value, self.section.columns)
        examples = examples_of(value, layout.name, self.section.system)
        label = {} if layout.classes is None else {layout.classes: truth_of(value, layout.classes)}
        texts = [*(one.content() for one in examples), *label.values()]
        return {"answered": answered_of(self.rows, examples), "texts": texts, **label}

    def key_of(self, value: dict[str, Any]) -> int:
        """All of the row's texts."""
        return hash_of("\x1f".join(value["texts"]))

    def _count(self, done: TableBatch, layout: Layout) -> None:
        """Cut each row to the longest that is trained; one that has no answer left is not stored."""
        most = self.recipe.model.max_length
        for number, value in enumerate(done.values):
            row: Answered = value.pop("answered")
            del value["texts"]
            start = len(row.prompt)
            kept = [answer[: max(0, most - start)] for answer in row.answers]
            longest = start + max(map(len, row.answers))
            whole = all(kept)
            flags = Odd(0)
            if longest > most:
                flags |= Odd.truncated_rows | (Odd.truncated_lost_end if whole else Odd.truncated_lost_all)
            if not whole:
                flags |= Odd.unsupervised_rows
            supervised = sum(map(len, kept)) if whole else 0
            value |= {"prompt_ids": row.prompt, **dict(zip(ANSWERS[layout.name], kept, strict=True))}
            done.owners.append(number)
            done.lengths.append(longest)
            done.sizes.append(supervised + start * len(kept) if whole else 0)
            done.supervised.append(supervised)
            done.flags.append(flags)
            if whole:
                for answer in kept:
                    done.ids.extend(row.prompt)
                    done.ids.extend(answer)


def answered_of(tokenizer: RowTokenizer, examples: list[Example]) -> Answered:
    """Tokens of examples that share their prompt. Raises RowError where the template differs."""
    parts = [_parted(tokenizer, example) for example in examples]
    # A token may span the prompt's end for one of the answers alone: then it belongs to both.
    start = min(start for _, start, _ in parts)
    prompt = parts[0][0][:start]
    for ids, _, _ in parts:
        if ids[:start] != prompt:
            raise RowError("the chat template writes the prompt differently for the two answers")
    return Answered(prompt, [ids[start:end] for ids, _, end in parts])


def _parted(tokenizer: RowTokenizer, example: Example) -> tuple[list[int], int, int]:
    """All ids of an example; where its last answer begins and ends in them."""
    prepared = tokenizer.prepare(example)
    earlier = sum(turn["role"] == "assistant" for turn in (example.messages or [])[:-1])
    prepared = replace(prepared, spans=(prepared.spans or [])[earlier:])
    row = tokenizer.encode([prepared])[0]
    learnt = [place for place, label in enumerate(row.labels) if label != IGNORE]
    if not learnt:
        raise RowError("the chat template does not write the answer")
    if learnt[0] == 0:
        raise RowError("there is no prompt before the answer")
    return row.input_ids, learnt[0], learnt[-1] + 1
