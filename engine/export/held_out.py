"""Rows for the smoke test, encoded exactly as training encodes them. Light."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..data.answers import answer_layout, examples_of
from ..data.batches import content_hash
from ..data.building import held_out
from ..data.chat_templates.thinking import thinking_of
from ..data.formats import Example, renamed, sniff, to_example
from ..data.masking import IGNORE
from ..data.messages import Message
from ..data.prompts import prompt_of
from ..data.rows import RawRow, RowError
from ..data.sources import iter_rows
from ..data.tables import Layout
from ..data.tokenization import RowTokenizer, TokenizerFiles
from ..errors import WhetError
from ..recipe import Recipe
from .smoke_cases import Limits

if TYPE_CHECKING:
    from ..plan import Plan

SCANNED = 20_000
"""Most source rows read in search of held-out ones."""


def held_out_rows(recipe: Recipe, model_dir: Path, limits: Limits | None = None) -> list[dict[str, Any]]:
    """A few short rows with messages, ids and labels; from the training rows where the recipe holds none out.

    Training rows serve as well: the two engines are compared with each other, not with the truth.
    """
    limits = limits or Limits()
    tokenizer = RowTokenizer.from_files(TokenizerFiles.read(model_dir), recipe.data.template)
    found = (_row(tokenizer, recipe, example) for example in _examples(recipe))
    short = (row for row in found if row is not None and len(row["input_ids"]) <= limits.row_tokens)
    return list(itertools.islice(short, limits.held_out_rows))


def planned_rows(plan: Plan, model_dir: Path, limits: Limits | None = None) -> list[dict[str, Any]]:
    """Rows for the proof of a run's export.

    Read from the source, which has the conversations; where that is gone by now, the tokens that the plan
    prepared serve without them.
    """
    if plan.recipe.method.kind == "tts":  # of their rows the proof wants the speech, not the text alone
        return _token_rows(plan.data.eval or plan.data.train, limits or Limits())
    try:
        return held_out_rows(plan.data_recipe(), model_dir, limits)
    except WhetError as gone:
        if not gone.code.startswith("data.") or not plan.data.is_complete():
            raise
    return _token_rows(plan.data.eval or plan.data.train, limits or Limits())


def _token_rows(file: Path, limits: Limits) -> list[dict[str, Any]]:
    import pyarrow as pa

    found: list[dict[str, Any]] = []
    with pa.memory_map(str(file)) as source:
        for batch in pa.ipc.open_stream(source):
            rows = [token_row(row) for row in batch.to_pylist()]
            found += [row for row in rows if len(row["input_ids"]) <= limits.row_tokens]
            if len(found) >= limits.held_out_rows:
                break
    return found[: limits.held_out_rows]


def token_row(stored: dict[str, Any]) -> dict[str, Any]:
    """ids and labels of a stored row; of compared answers the chosen one's, of a prompt its last token."""
    if "input_ids" in stored:
        return {name: stored[name] for name in ("input_ids", "labels")}
    prompt = stored["prompt_ids"]
    if "columns" in stored:
        return {"input_ids": prompt, "labels": [IGNORE] * (len(prompt) - 1) + prompt[-1:]}
    answer = stored["chosen_ids"] if "chosen_ids" in stored else stored["completion_ids"]
    return {"input_ids": prompt + answer, "labels": [IGNORE] * len(prompt) + answer}


def _examples(recipe: Recipe) -> Iterator[Example]:
    section = recipe.data
    if section.eval is not None:
        yield from read_examples(section.eval, recipe, "eval")
        return
    sources = [section.train] if isinstance(section.train, str) else list(section.train)
    for source in sources:
        for example in read_examples(source, recipe, "train"):
            key, fraction = content_hash(example), section.eval_fraction
            if fraction == 0 or held_out(key, recipe.training.seed, fraction):
                yield example


def read_examples(source: str, recipe: Recipe, role: Any) -> Iterator[Example]:
    """Rows of a source that read as examples, up to :data:`SCANNED`; others are left out."""
    rows = itertools.islice(iter_rows(source, recipe.data, role), SCANNED)
    head = list(itertools.islice(rows, 300))
    good = [row for row in head if isinstance(row, RawRow)]
    if recipe.method.kind == "preference":
        yield from _answered(itertools.chain(head, rows), answer_layout(good, recipe.data.columns), recipe)
        return
    if recipe.method.kind == "grpo":
        yield from _asked(itertools.chain(head, rows), recipe, [*recipe.method.columns, "answer"])
        return
    chosen = recipe.data.format
    layout = sniff(good, recipe.data.columns).format if chosen == "auto" else chosen
    if layout is None:
        return
    for row in itertools.chain(head, rows):
        if not isinstance(row, RawRow):
            continue
        try:
            yield to_example(row, layout, recipe.data)
        except RowError:
            continue  # the plan has reported it


def _answered(rows: Iterable[Any], layout: Layout | None, recipe: Recipe) -> Iterator[Example]:
    """Prompts with their chosen, or their only, answer."""
    for row in rows:
        if layout is None or not isinstance(row, RawRow):
            continue
        try:
            value = renamed(row.value, recipe.data.columns)
            yield examples_of(value, layout.name, recipe.data.system)[0]
        except RowError:
            continue  # the plan has reported it


def _asked(rows: Iterable[Any], recipe: Recipe, columns: list[str]) -> Iterator[Example]:
    """Prompts with the right answer that a column holds, or with none."""
    for row in rows:
        if not isinstance(row, RawRow):
            continue
        value = renamed(row.value, recipe.data.columns)
        right = next((value[name] for name in columns if isinstance(value.get(name), str | int | float)), "")
        try:
            prompt = prompt_of(value, recipe.data.system)
        except RowError:
            continue  # the plan has reported it
        if isinstance(prompt, str):
            yield Example(prompt=prompt, completion=str(right))
        else:
            yield Example(messages=[*prompt, {"role": "assistant", "content": str(right)}])


def _row(tokenizer: RowTokenizer, recipe: Recipe, example: Example) -> dict[str, Any] | None:
    try:
        encoded = tokenizer.encode_examples([example], supervise=_supervised(recipe))[0]
    except RowError:
        return None
    if encoded.supervised == 0:
        return None
    messages = example.messages
    if messages is None and example.prompt is not None and tokenizer.renderer is not None:
        messages = [
            {"role": "user", "content": example.prompt},
            {"role": "assistant", "content": example.completion or ""},
        ]
    ends_by_next = tokenizer.renderer is not None and tokenizer.renderer.next_token(call=False)
    if example.tools or ends_by_next or not all(map(_is_plain, messages or ())):
        messages = None  # prompt and answer are told by the labels
    return {"messages": messages, "input_ids": encoded.input_ids, "labels": encoded.labels}


def _is_plain(message: Message) -> bool:
    """A role and what it says: no tool calls, and no thinking, which training may write otherwise."""
    return set(message) <= {"role", "content"} and not thinking_of(message)


def _supervised(recipe: Recipe) -> Literal["responses", "all"]:
    """Answers are what preference training compares and rewards score, too."""
    return "responses" if recipe.method.kind in ("preference", "grpo") else recipe.method.supervise
