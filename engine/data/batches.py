"""A batch of raw rows becomes a batch of token rows with everything that was seen in them.

The unit of work of one process: nothing here knows other batches, so any number can be done side by side.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import WhetError
from ..recipe import Recipe
from .formats import Example, FormatName, learnt_parts, to_example
from .languages import language_of
from .marker_scan import MarkerScan
from .masking import IGNORE
from .messages import Message, alternates
from .row_flags import Odd
from .rows import BadRow, RawRow, RowError, preview_of
from .tokenization import PreparedText, RowTokenizer, TokenizerFiles, TokenRow, messages_of

BATCH_ROWS = 1000
BATCH_CHARACTERS = 4_000_000
"""A batch of few long rows ends here, so that memory stays bounded."""

LONG_ANSWER = 32
"""Characters from which on an answer that stands in its prompt is a copy, not a coincidence."""


@dataclass(slots=True)
class RowBatch:
    """Rows of one source in order, those that could not be read among them."""

    rows: list[RawRow | BadRow]
    format: FormatName
    role: str
    """``train`` or ``eval``."""
    look_only: bool = False
    """Only tell whether the rows can be used."""


@dataclass(slots=True)
class TokenBatch:
    """What became of a batch, in flat arrays: cheap to send between processes and to count.

    Examples are the usable rows; token rows are more where long texts were split.
    """

    role: str
    read: int = 0
    bad: list[BadRow] = field(default_factory=list)
    files: list[tuple[int, str]] = field(default_factory=list)
    """(first example, file), ascending."""
    lines: array[int] = field(default_factory=lambda: array("Q"))
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    wholes: array[int] = field(default_factory=lambda: array("Q"))
    """Where examples are parts of conversations: these, which are held out or trained on whole."""
    flags: array[int] = field(default_factory=lambda: array("I"))
    languages: list[str] = field(default_factory=list)
    markers: list[tuple[int, str, bool]] = field(default_factory=list)
    """(example, marker, whether it is a special token here)."""
    copied: list[tuple[int, int]] = field(default_factory=list)
    """(example, hash of its answer) where the answer stands in the prompt."""
    owners: array[int] = field(default_factory=lambda: array("I"))
    """The example of each token row."""
    lengths: array[int] = field(default_factory=lambda: array("I"))
    """Tokens of each token row before the cut."""
    sizes: array[int] = field(default_factory=lambda: array("I"))
    """Tokens stored of each token row: 0 where nothing of it is supervised."""
    supervised: array[int] = field(default_factory=lambda: array("I"))
    ids: array[int] = field(default_factory=lambda: array("i"))
    labels: array[int] = field(default_factory=lambda: array("i"))


def batches_of(rows: Iterable[RawRow | BadRow], format: FormatName, role: str) -> Iterator[RowBatch]:
    """Rows in batches that hold a bounded amount of text."""
    pending: list[RawRow | BadRow] = []
    characters = 0
    for row in rows:
        pending.append(row)
        characters += _characters(row.value) if isinstance(row, RawRow) else 0
        if len(pending) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield RowBatch(pending, format, role)
            pending, characters = [], 0
    if pending:
        yield RowBatch(pending, format, role)


class BatchTokenizer:
    """Does batches for one recipe.

    Args:
        recipe: uses its data, method and model.max_length.
        tokenizer: with the template in force.
    """

    def __init__(self, recipe: Recipe, tokenizer: RowTokenizer) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer
        self._scan = MarkerScan(tokenizer.tokenizer)

    @classmethod
    def of_model(cls, recipe: Recipe, model_dir: Path) -> BatchTokenizer:
        """With the tokenizer of a model's folder. Raises WhetError ``tokenizer.*`` or ``template.*``."""
        files = TokenizerFiles.read(model_dir)
        return cls(recipe, RowTokenizer.from_files(files, recipe.data.template))

    def work(self, batch: RowBatch) -> TokenBatch:
        """Raises WhetError ``template.*`` for what no row of this kind can pass."""
        done = TokenBatch(batch.role, read=len(batch.rows))
        prepared: list[PreparedText] = []
        for row in batch.rows:
            if isinstance(row, BadRow):
                done.bad.append(row)
                continue
            try:
                whole = to_example(row, batch.format, self.recipe.data)
                parts = learnt_parts(whole, self.recipe.data)
                texts = [] if batch.look_only else [self._prepare(part) for part in parts]
            except RowError as error:
                done.bad.append(BadRow(row.file, row.line, error.reason, preview_of(row.value)))
                continue
            for part, text in zip(parts, texts, strict=False):
                self._start(done, row, part, text)
                if self.recipe.data.reasoning == "each":
                    done.wholes.append(content_hash(whole))
                prepared.append(text)
        rows = self.tokenizer.encode(prepared, self.recipe.model.max_length, split_text=True)
        for tokens in rows:
            self._store(done, tokens, prepared[tokens.example])
        return done

    def _prepare(self, example: Example) -> PreparedText:
        return self.tokenizer.prepare(example, self.recipe.method.supervise)

    def _start(self, done: TokenBatch, row: RawRow, example: Example, text: PreparedText) -> None:
        """What the row shows before it is tokenised."""
        number = len(done.lines)
        if not done.files or done.files[-1][1] != row.file:
            done.files.append((number, row.file))
        done.lines.append(row.line)
        done.hashes.append(content_hash(example))
        odd, marked = Odd(0), self._scan.find(example)
        done.markers += [(number, marker, special) for marker, special in marked]
        if marked:
            odd |= Odd.marked_rows
        messages = example.messages
        if messages is not None:
            if any(_says_nothing(message) for message in messages):
                odd |= Odd.empty_replies
            if not alternates(messages):
                odd |= Odd.odd_roles
        elif example.completion is not None and not example.completion.strip():
            odd |= Odd.empty_replies
        prompt, answer = question_and_answer(example)
        if is_in_prompt(answer, prompt):
            odd |= Odd.answer_in_prompt
            done.copied.append((number, hash_of(answer)))
        if text.chat and not self._keeps_prompt(example, text.text):
            odd |= Odd.broken_prefix
        if text.context:
            odd |= Odd.thinking_dropped
        done.flags.append(odd)
        done.languages.append(language_of(answer))

    def _keeps_prompt(self, example: Example, text: str) -> bool:
        """The prompt that the model sees when it answers is how its training text begins."""
        renderer, messages = self.tokenizer.renderer, messages_of(example)
        assert renderer is not None
        turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns or turns[-1] == 0:
            return True
        try:
            prompt = renderer.render(messages[: turns[-1]], add_generation_prompt=True, tools=example.tools)
        except WhetError:
            return True  # nobody can ask this question, so no prompt differs
        return text.startswith(prompt)

    def _store(self, done: TokenBatch, row: TokenRow, text: PreparedText) -> None:
        done.owners.append(row.example)
        done.lengths.append(row.full_length)
        done.supervised.append(row.supervised)
        done.sizes.append(len(row.input_ids) if row.supervised else 0)
        done.flags[row.example] |= self._seen(row, text)
        if not row.full_supervised:  # left out for that, whatever its turns are
            done.flags[row.example] &= ~(Odd.odd_roles | Odd.empty_replies)
        if row.supervised:
            done.ids.extend(row.input_ids)
            done.labels.extend(row.labels)

    def _seen(self, row: TokenRow, text: PreparedText) -> Odd:
        odd = Odd(0)
        if row.truncated:
            odd |= Odd.truncated_rows
            if row.supervised < row.full_supervised:
                odd |= Odd.truncated_lost_end if row.supervised else Odd.truncated_lost_all
        if not row.full_supervised:
            odd |= Odd.answerless
        if not row.supervised:
            return odd | Odd.unsupervised_rows
        ids, bos = row.input_ids, self.tokenizer.bos_id
        if bos is not None and ids[0] == bos:
            if len(ids) > 1 and ids[1] == bos:
                odd |= Odd.double_bos
        elif text.chat and self.tokenizer.prefix:
            odd |= Odd.missing_bos
        return odd | self._end(row, text) if row.last and not row.truncated else odd

    def _end(self, row: TokenRow, text: PreparedText) -> Odd:
        """Whether the last supervised tokens are one end token; space after it is no part of the answer."""
        ends = self.tokenizer.end_ids | self.tokenizer.call_end_ids
        last = self._before(row.labels, len(row.labels))
        if last < 0 or row.labels[last] not in ends:
            return Odd.without_end_token
        # Where everything is supervised, a template may close the whole conversation once more.
        if text.chat and text.spans is None:
            return Odd(0)
        earlier = last - 1
        while earlier >= 0 and self.tokenizer.is_blank(row.input_ids[earlier]):
            earlier -= 1
        # An empty reply, too, ends after an end token: that of the turn before, with a header between.
        return Odd.double_end if earlier >= 0 and row.labels[earlier] in ends else Odd(0)

    def _before(self, labels: list[int], at: int) -> int:
        """Place of the last supervised token before ``at`` that is not white space, or -1."""
        at -= 1
        while at >= 0 and (labels[at] == IGNORE or self.tokenizer.is_blank(labels[at])):
            at -= 1
        return at


def content_hash(example: Example) -> int:
    """64 bits of an example's content; the same text in the same roles gives the same number."""
    return hash_of(example.content())


def hash_of(text: str) -> int:
    """64 bits of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def question_and_answer(example: Example) -> tuple[str, str]:
    """The last answer, and all that stands before it; a text has no question."""
    if example.text is not None:
        return "", example.text
    messages = messages_of(example)
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        return "\n".join(str(message["content"]) for message in messages), ""
    before = messages[: turns[-1]]
    return "\n".join(str(message["content"]) for message in before), str(messages[turns[-1]]["content"])


def is_in_prompt(answer: str, prompt: str) -> bool:
    """A long answer stands in its prompt word for word, or the prompt ends with the answer."""
    answer = answer.strip()
    if len(answer) >= LONG_ANSWER:
        return answer in prompt
    return len(answer) > 1 and prompt.rstrip().endswith(answer)


def _says_nothing(message: Message) -> bool:
    silent = message["role"] == "assistant" and not message["content"].strip()
    return silent and "tool_calls" not in message


def _characters(value: Any) -> int:
    """Characters in a row's texts, however deep."""
    total, waiting = 0, [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, str):
            total += len(inner)
        elif isinstance(inner, dict):
            waiting += inner.values()
        elif isinstance(inner, list):
            waiting += inner
    return total
