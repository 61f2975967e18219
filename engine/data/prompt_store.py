"""Prompts as tokens on disk, with the columns that their answers will be scored by.

A prompt is written by the chat template with the assistant's turn begun; without a template it is plain text.
Of a prompt that is too long the end is kept, where the question stands.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WhetError
from ..methods.grpo.section import GRPOSection
from ..recipe import Recipe
from ..rewards.verifiers.registry import unusable
from .answer_store import AnswerBuilder, AnswerWriter
from .batches import hash_of
from .formats import FormatGuess, renamed
from .messages import Message
from .prompts import PROMPT, prompt_of
from .row_flags import Odd
from .rows import RawRow, RowError
from .table_store import TableBatch
from .tables import Layout
from .tokenization import RowTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow

    from .split_writer import SplitWriter


class PromptWriter(AnswerWriter):
    """Stores prompt_ids, and prompt and columns as JSON."""

    def schema(self) -> pyarrow.Schema:
        """A list of int32, and two texts."""
        import pyarrow as pa

        texts = [(name, pa.string()) for name in (PROMPT, "columns")]
        return pa.schema([("prompt_ids", pa.list_(pa.int32())), *texts, ("row", pa.int64())])


class PromptBuilder(AnswerBuilder):
    """Rows whose prompts the chat template renders."""

    @classmethod
    def decided_by(cls, recipe: Recipe, model_dir: Path) -> dict[str, Any]:
        """The longest prompt, and which reward reads which column.

        Raises WhetError ``data.no_room`` where the model has no place for a prompt.
        """
        section, length = _section(recipe), recipe.model.max_length
        limit = section.prompt_limit(length)
        if limit < 1:
            raise WhetError(
                "data.no_room",
                f"The model has {length} positions, and method.max_completion_length="
                f"{section.max_completion_length} leaves none for a prompt.",
                f"Set method.max_completion_length={max(1, length // 2)}.",
            )
        return {
            "prompt_limit": limit,
            "rewards": [[type(one).__name__, *one.columns] for one in section.rewards],
        }

    def guess(self, source: str, rows: list[RawRow]) -> FormatGuess:
        """As the base class; refuses rows without a column that a reward needs."""
        found = super().guess(source, rows)
        assert self.layout is not None
        names = [name for name in self.layout.columns if name != PROMPT]
        for column, rewards in _section(self.recipe).columns.items():
            if column not in names:
                have = ", ".join(names) or "none"
                raise WhetError(
                    "data.reward_column",
                    f"The reward {' and '.join(rewards)} reads the column {column!r}, which the rows of "
                    f"{source} lack; beside prompt they have: {have}.",
                    f"Name it with data.columns.{column}=..., or set the reward's own column=...",
                )
        return found

    def split(self, name: str, drop: Iterable[str] = (), leaked: Iterable[int] = ()) -> SplitWriter:
        """Of prompts."""
        assert self.layout is not None
        return PromptWriter(self.layout, self.out / name, drop, leaked)

    def value_of(self, row: RawRow, layout: Layout) -> dict[str, Any]:
        """The prompt's tokens, uncut, and prompt and columns as they are stored."""
        value = renamed(row.value, self.section.columns)
        prompt = prompt_of(value, self.section.system)
        unjudged = unusable(_section(self.recipe).rewards, value)
        if unjudged is not None:
            raise RowError(unjudged)
        ids = prompt_ids(self.rows, prompt, tools_of(value))
        others = {name: held for name, held in value.items() if name != PROMPT}
        return {
            "prompt_ids": ids,
            PROMPT: json.dumps(prompt),
            "columns": json.dumps(others, default=str),
        }

    def key_of(self, value: dict[str, Any]) -> int:
        """The prompt, and what its answers are scored by."""
        return hash_of("\x1f".join([value[PROMPT], value["columns"]]))

    def _count(self, done: TableBatch, layout: Layout) -> None:
        """Cut each prompt to the longest that leaves room for an answer."""
        limit = _section(self.recipe).prompt_limit(self.recipe.model.max_length)
        for number, value in enumerate(done.values):
            length = len(value["prompt_ids"])
            kept = value["prompt_ids"] = value["prompt_ids"][-limit:]
            done.owners.append(number)
            done.lengths.append(length)
            done.sizes.append(len(kept))
            done.supervised.append(len(kept))
            done.flags.append(Odd.truncated_rows if length > limit else Odd(0))
            done.ids.extend(kept)


def prompt_ids(tokenizer: RowTokenizer, prompt: str | list[Message], tools: list[Any] | None) -> list[int]:
    """Tokens of a prompt, up to where the answer begins. Raises RowError where the template refuses it."""
    if isinstance(prompt, str) and tokenizer.renderer is None:
        return [*tokenizer.prefix, *tokenizer.tokenizer.encode(prompt, add_special_tokens=False).ids]
    if tokenizer.renderer is None:
        raise WhetError(
            "template.missing",
            "The prompts are conversations, but the model ships no chat template.",
            "Choose one with data.template, e.g. data.template=chatml (`whet template --list`).",
        )
    turns: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    try:
        text = tokenizer.renderer.render(turns, tools=tools, add_generation_prompt=True)
    except WhetError as error:
        raise RowError(error.message) from error
    ids: list[int] = tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def tools_of(value: dict[str, Any]) -> list[Any] | None:
    """A row's tools, for the template. Raises RowError."""
    tools = value.get("tools") or None
    if tools is not None and not isinstance(tools, list):
        raise RowError(f"field 'tools' is {type(tools).__name__}, expected a list")
    return tools


def _section(recipe: Recipe) -> GRPOSection:
    assert isinstance(recipe.method, GRPOSection)
    return recipe.method
