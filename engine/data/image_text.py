"""A conversation with images as ids and labels: rendered by the template, each placeholder spelled out.

What the assistant wrote is known in the rendered text; the images move it to the right by what they are
written as. Only then is the text tokenised, as a processor would, so that tokens at the edges are the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from ..errors import WhetError
from ..models.image_tokens import ImageTokens
from .chat_templates.renderer import Renderer
from .formats import Example
from .masking import IGNORE, labels_of, token_spans
from .messages import Message
from .rows import RowError
from .tokenization import RowTokenizer

Size = tuple[int, int]


class PartsRenderer(Renderer):
    """A chat template that may read contents as lists of parts only; then texts become such lists."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        tools: Sequence[Any] | None = None,
        **variables: Any,
    ) -> str:
        """See the base class."""
        if not self.takes_texts:
            messages = [_in_parts(message) for message in messages]
        return super().render(messages, add_generation_prompt, tools, **variables)

    @cached_property
    def takes_texts(self) -> bool:
        """Whether it writes contents that are plain texts."""
        probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        try:
            text = super().render(probe)
        except WhetError:
            return False
        return "question" in text and "answer" in text


def _in_parts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}


@dataclass(frozen=True)
class ImageRow:
    """One row, uncut."""

    input_ids: list[int]
    labels: list[int]
    image_end: int
    """Tokens up to the last that stands for an image; 0 without images."""
    image_tokens: int


class ConversationEncoder:
    """For one model.

    Args:
        rows: its tokenizer with a :class:`PartsRenderer`.
        images: how it writes images.
    """

    def __init__(self, rows: RowTokenizer, images: ImageTokens) -> None:
        if rows.renderer is None:
            raise WhetError(
                "template.missing",
                "The model ships no chat template, which writes its images' places.",
                "Use the model's instruction-tuned checkpoint, or its folder with chat_template.jinja.",
            )
        self.rows, self.images = rows, images
        self.renderer: Renderer = rows.renderer
        known = {text: rows.tokenizer.token_to_id(text) for text in images.reserved}
        self.reserved_ids = frozenset(id for id in known.values() if id is not None)

    def encode(self, messages: list[Message], sizes: Sequence[Size], *, everything: bool = False) -> ImageRow:
        """Ids and labels of a conversation.

        Args:
            messages: from :func:`.image_rows.conversation_of`.
            sizes: width and height of each image as it is trained.
            everything: label all texts, not only the assistant's.

        Raises:
            RowError: the template refuses it, or writes other places than there are images; a text holds a
                token that stands for images; an image cannot be written.
            WhetError: ``template.*``.
        """
        self._refuse_reserved(messages)
        prepared = self.rows.prepare(Example(messages=messages), "all" if everything else "responses")
        spans = [(0, len(prepared.text))] if prepared.spans is None else prepared.spans
        text, spans = self._spelled_out(prepared.text, spans, sizes)
        encoding = self.rows.tokenizer.encode(text, add_special_tokens=False)
        ids = list(encoding.ids)
        labels = labels_of(ids, token_spans(encoding.offsets, spans))
        prefix = self.rows.prefix
        if prefix and ids[: len(prefix)] != prefix:
            ids, labels = prefix + ids, [IGNORE] * len(prefix) + labels
        places = [at for at, id in enumerate(ids) if id in self.reserved_ids]
        for at in places:
            labels[at] = IGNORE
        labels[0] = IGNORE  # nothing comes before it that could predict it
        count = ids.count(self.images.filler_id)
        return ImageRow(ids, labels, places[-1] + 1 if places else 0, count)

    def prompt(self, messages: list[Message], sizes: Sequence[Size]) -> list[int]:
        """Ids up to where the assistant begins. Raises as :meth:`encode`."""
        self._refuse_reserved(messages)
        return self.tokenise(self.renderer.render(messages, add_generation_prompt=True), sizes)

    def tokenise(self, text: str, sizes: Sequence[Size]) -> list[int]:
        """Ids of a rendered text. Raises RowError where it has other places than there are images."""
        text, _ = self._spelled_out(text, [], sizes)
        ids = list(self.rows.tokenizer.encode(text, add_special_tokens=False).ids)
        prefix = self.rows.prefix
        return ids if ids[: len(prefix)] == prefix else prefix + ids

    def _refuse_reserved(self, messages: list[Message]) -> None:
        for number, message in enumerate(messages, 1):
            content = message["content"]
            parts = content if isinstance(content, list) else [{"text": content}]
            for token in self.images.reserved:
                if any(token in part.get("text", "") for part in parts):
                    raise RowError(f"message {number} contains {token}, which stands for images here")

    def _spelled_out(
        self, text: str, spans: Sequence[tuple[int, int]], sizes: Sequence[Size]
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text with each image written as it is read, and the spans where they are then."""
        pieces = text.split(self.images.placeholder)
        if len(pieces) != len(sizes) + 1:
            raise RowError(
                f"the chat template writes {len(pieces) - 1} places for images, and there are {len(sizes)}"
            )
        try:
            written = [self.images.text(*size) for size in sizes]
        except ValueError as error:
            raise RowError(f"an image cannot be read by this model: {error}") from error
        width = len(self.images.placeholder)
        ends, shifts, at, shift = [0], [0], 0, 0
        for piece, image in zip(pieces, written, strict=False):
            at += len(piece) + width
            shift += len(image) - width
            ends.append(at)
            shifts.append(shift)

        def moved(place: int) -> int:
            return place + shifts[bisect_right(ends, place) - 1]

        whole = pieces[0] + "".join(i + piece for i, piece in zip(written, pieces[1:], strict=True))
        return whole, [(moved(start), moved(end)) for start, end in spans]


def encoder_of(
    tokenizer: Tokenizer,
    template: str | None,
    images: ImageTokens,
    bos: str | None,
    eos: str | None,
    add_bos: bool | None = None,
) -> ConversationEncoder:
    """For a tokenizer (without truncation and padding) and the text of its chat template."""
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    special = [text for text in added if text.strip()]
    renderer = None if template is None else PartsRenderer(template, bos, eos, special)
    return ConversationEncoder(RowTokenizer(tokenizer, bos, eos, renderer, add_bos), images)
