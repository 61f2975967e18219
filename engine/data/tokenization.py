"""From examples to ids and labels, by the chat template: one BOS, one end of turn, nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from ..errors import WhetError
from .chat_templates import ChatTemplate, find
from .chat_templates.renderer import COSTLY, Renderer
from .formats import Example
from .masking import IGNORE, labels_of, token_spans
from .messages import Message
from .rows import RowError
from .tokenizer_files import TokenizerFiles

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

__all__ = ["RowTokenizer", "TokenRow", "TokenizerFiles"]

Supervise = Literal["responses", "all"]
Span = tuple[int, int]


@dataclass(slots=True)
class TokenRow:
    """One stored row. ``labels`` is -100 where nothing is learnt; both lists have the same length."""

    input_ids: list[int]
    labels: list[int]
    truncated: bool
    supervised: int
    """Tokens with a label, after the cut."""
    example: int
    """Index in the batch that was encoded; long texts split into windows share it."""
    full_length: int
    """Tokens before the cut."""
    full_supervised: int
    last: bool = True
    """Holds the end of its example: false for the earlier windows of a split text."""


@dataclass(slots=True)
class PreparedText:
    """An example as text, before tokenisation. ``spans`` None means that all of it is supervised."""

    text: str
    spans: list[Span] | None
    chat: bool
    ends: bool
    """The text already ends with an end token."""
    context: bool = False
    """Answers are left out, since the template drops their thinking."""


class RowTokenizer:
    """Encodes examples with a fast tokenizer and, for conversations, a chat template.

    Args:
        tokenizer: without truncation and padding.
        bos_token, eos_token: their texts, or None.
        renderer: the chat template in force; None for a model without one.
        add_bos_token: the configuration's word on BOS for plain text; None asks the post-processor.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        bos_token: str | None = None,
        eos_token: str | None = None,
        renderer: Renderer | None = None,
        add_bos_token: bool | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.renderer = renderer
        self.bos_id = tokenizer.token_to_id(bos_token) if bos_token else None
        self.eos_id = tokenizer.token_to_id(eos_token) if eos_token else None
        self.bos_token, self.eos_token = bos_token, eos_token
        self.prefix = self._text_prefix(add_bos_token)
        end_of_turn = renderer.end_of_turn if renderer else None
        ends = dict.fromkeys(token for token in (end_of_turn, eos_token) if token)
        self.end_texts = tuple(ends)
        self.end_ids = frozenset(id for token in ends if (id := tokenizer.token_to_id(token)) is not None)
        self._blank: dict[int, bool] = {}

    @cached_property
    def call_end_ids(self) -> frozenset[int]:
        """What ends a turn that calls a tool, where the template writes such turns."""
        end = None if self.renderer is None else self.renderer.end_of_call
        found = None if end is None else self.tokenizer.token_to_id(end)
        return frozenset() if found is None else frozenset([found])

    @classmethod
    def from_files(
        cls, files: TokenizerFiles, template_override: str | ChatTemplate | None = None
    ) -> RowTokenizer:
        """From a model directory's files.

        Args:
            files: what :meth:`TokenizerFiles.read` found.
            template_override: one of our templates or its name; else the model's own is used, if it has one.
        """
        tokenizer = files.load()
        source = template_source(template_override, files.chat_template)
        renderer = _renderer(tokenizer, source, files.bos_token, files.eos_token)
        return cls(tokenizer, files.bos_token, files.eos_token, renderer, files.add_bos_token)

    @classmethod
    def from_hf(cls, hf_tokenizer: Any, template: str | ChatTemplate | None = None) -> RowTokenizer:
        """From a fast transformers tokenizer (its backend is copied, so the original keeps its state).

        Args:
            hf_tokenizer: a ``PreTrainedTokenizerFast`` or the like; only attributes are read.
            template: as in :meth:`from_files`; by default the tokenizer's own.

        Raises:
            WhetError: ``tokenizer.slow`` for a tokenizer without a fast backend.
        """
        from tokenizers import Tokenizer

        if not hf_tokenizer.is_fast:
            raise WhetError(
                "tokenizer.slow",
                f"{type(hf_tokenizer).__name__} has no fast backend: spans of text do not map to tokens.",
                "Load it with use_fast=True, or convert it once with AutoTokenizer and save_pretrained.",
            )
        tokenizer = Tokenizer.from_str(hf_tokenizer.backend_tokenizer.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        own = hf_tokenizer.chat_template
        source = template_source(template, own.get("default") if isinstance(own, dict) else own)
        bos, eos = hf_tokenizer.bos_token, hf_tokenizer.eos_token
        return cls(tokenizer, bos, eos, _renderer(tokenizer, source, bos, eos))

    def prepare(self, example: Example, supervise: Supervise = "responses") -> PreparedText:
        """The example as text with the spans to supervise.

        Raises:
            RowError: the template refuses this conversation.
            WhetError: ``template.missing`` when a conversation meets a model without a template.
        """
        if example.text is not None:
            return PreparedText(example.text, None, chat=False, ends=self._ends(example.text))
        if example.messages is None and self.renderer is None:
            prompt, completion = example.prompt or "", example.completion or ""
            text = prompt + completion
            spans = None if supervise == "all" else [(len(prompt), len(text))]
            return PreparedText(text, spans, chat=False, ends=self._ends(text))
        return self._chat(messages_of(example), example.tools, supervise, example.only_last)

    def encode(
        self, prepared: Sequence[PreparedText], max_length: int | None = None, split_text: bool = False
    ) -> list[TokenRow]:
        """Ids and labels of prepared texts, tokenised in parallel.

        Args:
            prepared: what :meth:`prepare` returned.
            max_length: longest row in tokens; the rest is cut off at the right.
            split_text: instead of cutting a fully supervised plain text, continue it in further rows.
        """
        encodings = self.tokenizer.encode_batch([one.text for one in prepared], add_special_tokens=False)
        rows: list[TokenRow] = []
        for number, (one, encoding) in enumerate(zip(prepared, encodings, strict=True)):
            ids, labels = self._labelled(one, encoding)
            if split_text and max_length and len(ids) > max_length and not one.chat and one.spans is None:
                for at in range(0, len(ids), max_length):
                    stop = at + max_length
                    rows.append(_row(ids[at:stop], labels[at:stop], None, number, last=stop >= len(ids)))
            else:
                rows.append(_row(ids, labels, max_length, number))
        return rows

    def encode_examples(
        self,
        batch: Sequence[Example],
        max_length: int | None = None,
        supervise: Supervise = "responses",
        split_text: bool = False,
    ) -> list[TokenRow]:
        """Prepare and encode; one row an example unless ``split_text`` splits a long text.

        Raises:
            RowError, WhetError: as :meth:`prepare`.
        """
        prepared = [self.prepare(example, supervise) for example in batch]
        return self.encode(prepared, max_length, split_text)

    def _chat(
        self,
        messages: list[Message],
        tools: list[Any] | None,
        supervise: Supervise,
        only_last: bool = False,
    ) -> PreparedText:
        if self.renderer is None:
            raise WhetError(
                "template.missing",
                "The rows are conversations, but the model ships no chat template.",
                "Choose one with data.template, e.g. data.template=chatml (`whet template --list`).",
            )
        try:
            if supervise == "all" and not only_last:
                text = self.renderer.render_all(messages, tools=tools)
                return PreparedText(text, None, chat=True, ends=True)
            rendered = self.renderer.render_with_spans(messages, tools=tools)
        except WhetError as error:
            # Spans that are unclear in any conversation are the template's fault, otherwise the row's.
            unclear = error.code == "template.spans" and self.renderer.end_of_turn is None
            if unclear or error.code == COSTLY:
                raise
            raise RowError(error.message) from error
        if only_last:
            return PreparedText(rendered.text, rendered.spans[-1:], chat=True, ends=True)
        return PreparedText(rendered.text, rendered.spans, chat=True, ends=True, context=rendered.context > 0)

    def _labelled(self, one: PreparedText, encoding: Encoding) -> tuple[list[int], list[int]]:
        """All ids with their labels, BOS and EOS of plain text included."""
        ids: list[int] = encoding.ids
        spans = [(0, len(ids))] if one.spans is None else token_spans(encoding.offsets, one.spans)
        labels = labels_of(ids, spans)
        if one.chat:
            return ids, labels
        if self.prefix and ids[: len(self.prefix)] != self.prefix:
            ids = self.prefix + ids
            labels = (self.prefix if one.spans is None else [IGNORE] * len(self.prefix)) + labels
        if self.eos_id is not None and not one.ends:
            ids = [*ids, self.eos_id]
            labels = [*labels, self.eos_id]
        return ids, labels

    def is_blank(self, id: int) -> bool:
        """Whether a token is white space alone."""
        if id not in self._blank:
            self._blank[id] = not self.tokenizer.decode([id], skip_special_tokens=False).strip()
        return self._blank[id]

    def _ends(self, text: str) -> bool:
        return text.rstrip().endswith(self.end_texts) if self.end_texts else False

    def _text_prefix(self, add_bos_token: bool | None) -> list[int]:
        """What this tokenizer puts before plain text: normally nothing or BOS."""
        if add_bos_token is not None:
            return [self.bos_id] if add_bos_token and self.bos_id is not None else []
        bare: list[int] = self.tokenizer.encode("a", add_special_tokens=False).ids
        whole: list[int] = self.tokenizer.encode("a").ids
        return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(bare)] == bare), [])


def messages_of(example: Example) -> list[Message]:
    """The example as a conversation; a prompt is asked by the user, its completion the answer."""
    if example.messages is not None:
        return example.messages
    return [
        {"role": "user", "content": example.prompt or ""},
        {"role": "assistant", "content": example.completion or ""},
    ]


def template_source(override: str | ChatTemplate | None, own: str | None) -> str | None:
    """The template in force: one of ours when asked for, else the model's own, else none.

    An override with Jinja in it is taken as a template's text.
    """
    if override is None:
        return own
    if isinstance(override, ChatTemplate):
        return override.source
    return override if "{%" in override or "{{" in override else find(override).source


def _renderer(tokenizer: Tokenizer, source: str | None, bos: str | None, eos: str | None) -> Renderer | None:
    if source is None:
        return None
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return Renderer(source, bos, eos, [text for text in added if text.strip()])


def _row(
    ids: list[int], labels: list[int], max_length: int | None, example: int, last: bool = True
) -> TokenRow:
    total = len(ids) - labels.count(IGNORE)
    if max_length is None or len(ids) <= max_length:
        return TokenRow(ids, labels, False, total, example, len(ids), total, last)
    cut = labels[:max_length]
    kept = max_length - cut.count(IGNORE)
    return TokenRow(ids[:max_length], cut, True, kept, example, len(ids), total)
