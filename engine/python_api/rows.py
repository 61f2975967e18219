"""From a script's data set to `input_ids` and `labels`, with knowledge of the chat template.

Text that the template rendered already begins as the template says and already ends its last turn: it gets
neither the tokenizer's own BOS on top nor an EOS behind. Plain text gets both once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset, IterableDataset
from jinja2 import TemplateError

from ..data.chat_templates.renderer import Renderer
from ..data.formats import TURN_FIELDS, to_example
from ..data.masking import IGNORE, labels_of, token_spans
from ..data.messages import Message, canonical_messages
from ..data.rows import RawRow, RowError
from ..data.tool_calls import canonical_tools
from ..errors import WhetError
from ..recipe import DataSection
from .notes import say
from .template_parts import template_parts

Batch = dict[str, list[Any]]


@dataclass(frozen=True)
class TextRules:
    """How this tokenizer's texts begin and end."""

    bos: tuple[int, ...]
    """What the tokenizer puts in front of plain text: its BOS, or nothing."""
    eos: tuple[int, ...]
    openings: tuple[str, ...]
    """Beginnings of text that has its own start: the template's, and the BOS written out."""
    end: str
    """End-of-turn text of the template, without white space; may be empty."""
    specials: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Any, add_bos: bool = True) -> TextRules:
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        adds_bos = add_bos and bos is not None and tokenizer("a")["input_ids"][0] == bos
        parts = template_parts(tokenizer) if tokenizer.chat_template else None
        openings = parts.openings if parts else ()
        added = tokenizer.added_tokens_decoder
        return cls(
            bos=(bos,) if adds_bos else (),
            eos=() if eos is None else (eos,),
            openings=(*openings, tokenizer.bos_token) if tokenizer.bos_token else openings,
            end=parts.end.strip() if parts else "",
            specials=frozenset([*tokenizer.all_special_ids, *(i for i, t in added.items() if t.special)]),
        )

    def front(self, text: str) -> tuple[int, ...]:
        """Ids to put before the text's own."""
        return () if text.startswith(self.openings) else self.bos

    def back(self, text: str, ids: Sequence[int], tokenizer: Any) -> tuple[int, ...]:
        """Ids to put behind: none where the text ends with a special token or the template's end of turn."""
        if self.end and text.rstrip().endswith(self.end):
            return ()
        last = next((i for i in reversed(ids) if i in self.specials or tokenizer.decode([i]).strip()), None)
        return () if last in self.specials else self.eos


def tokenise_dataset(
    dataset: Dataset | IterableDataset,
    tokenizer: Any,
    args: Any,
    *,
    formatting_func: Callable[[Any], str | list[str]] | None,
    prefer_text: bool,
    completion_only: bool | None,
    name: str,
    only_assistant: bool = False,
) -> Dataset | IterableDataset:
    """Rows with `input_ids` and `labels` (lists of int, -100 where unsupervised); tokenised rows pass
    unchanged.

    Args:
        dataset: rows of text, chats, prompt and completion, or Alpaca columns.
        tokenizer: a transformers tokenizer with its chat template set.
        args: the trainer's `SFTConfig`.
        formatting_func: row or batch of rows to one or several texts.
        prefer_text: the text column was named by the script, so it wins over chat columns.
        completion_only: supervise completions only; None means yes.
        name: of the rows, for progress bars and errors.
        only_assistant: supervise what the assistant writes in chats, and nothing else.

    Raises:
        WhetError: `data.no_text` when no column can be read; `template.missing` for chats without a template.
    """
    columns = list(next(iter(dataset), {}))
    if "input_ids" in columns:
        if formatting_func is not None:
            say(f"formatting_func has no effect: the {name} rows are already tokenised.")
        return dataset
    if formatting_func is not None:
        encode = _formatting_encoder(next(iter(dataset)), formatting_func, tokenizer, args)
    else:
        rules = _rules(tokenizer, args)
        encode = _column_encoder(
            columns,
            args.dataset_text_field,
            tokenizer,
            rules,
            prefer_text,
            completion_only,
            only_assistant,
            name,
        )
    options: dict[str, Any] = {}
    if isinstance(dataset, Dataset):
        options = {"num_proc": args.dataset_num_proc, "desc": f"Tokenising the {name} rows"}
    return dataset.map(encode, batched=True, remove_columns=columns, **options)


def _column_encoder(
    columns: list[str],
    field: str,
    tokenizer: Any,
    rules: TextRules,
    prefer_text: bool,
    completion_only: bool | None,
    only_assistant: bool,
    name: str,
) -> Callable[[Batch], Batch]:
    """The encoder for the columns at hand, in order of preference."""
    chat = next((column for column in TURN_FIELDS if column in columns), None)
    if field in columns and (prefer_text or not (chat or "prompt" in columns)):
        return partial(_encode_text, field=field, tokenizer=tokenizer, rules=rules)
    if chat:
        return partial(_encode_chats, field=chat, tokenizer=tokenizer, only_assistant=only_assistant)
    if {"prompt", "completion"} <= set(columns):
        only = completion_only is not False
        return partial(_encode_pairs, tokenizer=tokenizer, rules=rules, completion_only=only)
    if {"instruction", "output"} <= set(columns):
        return partial(_encode_alpaca, tokenizer=tokenizer, only_assistant=only_assistant)
    raise WhetError(
        "data.no_text",
        f"The {name} rows have the columns {', '.join(columns) or '(none)'}, and none is {field!r}.",
        "Name the text column with dataset_text_field=, pass formatting_func=, or use columns messages, "
        "conversations, prompt and completion, or instruction, input and output.",
    )


def _rules(tokenizer: Any, args: Any) -> TextRules:
    options = args.dataset_kwargs or {}
    ignored = sorted(set(options) - {"add_special_tokens", "skip_prepare_dataset"})
    if ignored:
        say(f"dataset_kwargs {', '.join(ignored)} have no effect: special tokens follow the chat template.")
    return TextRules.of(tokenizer, add_bos=options.get("add_special_tokens", True))


def _encode_text(batch: Batch, field: str, tokenizer: Any, rules: TextRules) -> Batch:
    return encode_texts(batch[field], tokenizer, rules)


def encode_texts(texts: list[str], tokenizer: Any, rules: TextRules) -> Batch:
    """Ids of whole texts, all supervised."""
    rows = []
    for text, ids in zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True):
        rows.append([*rules.front(text), *ids, *rules.back(text, ids, tokenizer)])
    return {"input_ids": rows, "labels": [list(ids) for ids in rows]}


def _encode_chats(batch: Batch, field: str, tokenizer: Any, only_assistant: bool) -> Batch:
    try:
        tools = [canonical_tools(one) for one in batch.get("tools", [None] * len(batch[field]))]
    except RowError as error:
        raise _unusable(error) from error
    return encode_conversations(
        [messages_of(row, field) for row in batch[field]], tools, tokenizer, only_assistant
    )


def _encode_alpaca(batch: Batch, tokenizer: Any, only_assistant: bool) -> Batch:
    section = DataSection.model_validate({"train": "rows of the trainer"})
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    chats = []
    for row in rows:
        try:
            example = to_example(RawRow("", 0, row), "alpaca", section)
        except RowError as error:
            raise _unusable(error) from error
        chats.append(example.messages or [])
    return encode_conversations(chats, [None] * len(chats), tokenizer, only_assistant)


def messages_of(turns: Any, field: str) -> list[Message]:
    """Turns under any spelling as canonical messages.

    Raises:
        WhetError: `data.row` naming the turn.
    """
    try:
        return canonical_messages(turns, field)
    except RowError as error:
        raise _unusable(error) from error


def _unusable(error: RowError) -> WhetError:
    return WhetError(
        "data.row", f"A row cannot be used: {error.reason}.", "Repair or filter such rows first."
    )


def encode_conversations(
    conversations: list[list[Message]], tools: list[Any], tokenizer: Any, only_assistant: bool
) -> Batch:
    """Ids as the template renders them, nothing added; all tokens supervised, or the assistant's only."""
    renderer = renderer_of(tokenizer)
    if not only_assistant:
        texts = [
            renderer.render_all(chat, tools=tool) for chat, tool in zip(conversations, tools, strict=True)
        ]
        rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return {"input_ids": rows, "labels": [list(ids) for ids in rows]}
    rendered = [
        renderer.render_with_spans(chat, tools=tool) for chat, tool in zip(conversations, tools, strict=True)
    ]
    encoded = tokenizer([r.text for r in rendered], add_special_tokens=False, return_offsets_mapping=True)
    labels = [
        labels_of(ids, token_spans(offsets, r.spans))
        for ids, offsets, r in zip(encoded["input_ids"], encoded["offset_mapping"], rendered, strict=True)
    ]
    return {"input_ids": encoded["input_ids"], "labels": labels}


def _encode_pairs(batch: Batch, tokenizer: Any, rules: TextRules, completion_only: bool) -> Batch:
    """Prompt and completion, texts or lists of messages; the completion's tokens and EOS are supervised."""
    rows: Batch = {"input_ids": [], "labels": []}
    for prompt, completion in zip(batch["prompt"], batch["completion"], strict=True):
        if isinstance(prompt, str):
            text, starts = prompt + completion, len(prompt)
        else:
            renderer = renderer_of(tokenizer)
            before, after = messages_of(prompt, "prompt"), messages_of(completion, "completion")
            text = renderer.render([*before, *after])
            opened = renderer.render(before, add_generation_prompt=True)
            starts = len(opened) if text.startswith(opened) else len(renderer.render(before))
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = token_spans(encoded["offset_mapping"], [(starts, len(text))])
        ids = encoded["input_ids"]
        front, back = rules.front(text), rules.back(text, ids, tokenizer)
        labels = labels_of(ids, spans) if completion_only else list(ids)
        hidden = [IGNORE] * len(front) if completion_only else list(front)
        rows["input_ids"].append([*front, *ids, *back])
        rows["labels"].append([*hidden, *labels, *back])
    return rows


def renderer_of(tokenizer: Any) -> Renderer:
    """The tokenizer's chat template, compiled."""
    return Renderer(
        tokenizer.get_chat_template(),
        tokenizer.bos_token,
        tokenizer.eos_token,
        [token.content for token in tokenizer.added_tokens_decoder.values() if token.special],
    )


def _formatting_encoder(
    first: dict[str, Any], formatting_func: Callable[[Any], Any], tokenizer: Any, args: Any
) -> Callable[[Batch], Batch]:
    texts_of = _batched_texts if _takes_batches(formatting_func, first) else _row_texts
    rules = _rules(tokenizer, args)

    def encode(batch: Batch) -> Batch:
        return encode_texts(texts_of(formatting_func, batch), tokenizer, rules)

    return encode


def _takes_batches(formatting_func: Callable[[Any], Any], row: dict[str, Any]) -> bool:
    """Whether the function was written for a batch of rows (columns of lists): two equal rows give two
    equal texts.

    A function for single rows either returns one text, or trips over lists where it expects values.
    """
    try:
        texts = formatting_func({key: [value, value] for key, value in row.items()})
    except (TypeError, KeyError, AttributeError, ValueError, IndexError, TemplateError):
        return False
    if not isinstance(texts, list) or len(texts) != 2 or texts[0] != texts[1]:
        return False
    return isinstance(texts[0], str)


def _batched_texts(formatting_func: Callable[[Any], Any], batch: Batch) -> list[str]:
    return list(formatting_func(dict(batch)))


def _row_texts(formatting_func: Callable[[Any], Any], batch: Batch) -> list[str]:
    texts: list[str] = []
    for values in zip(*batch.values(), strict=True):
        made = formatting_func(dict(zip(batch, values, strict=True)))
        texts += [made] if isinstance(made, str) else made
    return texts
