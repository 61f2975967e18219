"""Render conversations as transformers does, and know which characters the assistant wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2

from ...errors import WhetError
from ..rows import REFUSES
from ..tool_calls import argument_objects, with_json
from .bounds import Overrun
from .call_spans import marked_calls, refuse_lost
from .environment import CLOSE, OPEN, template_environment
from .stripping import strip_generation_tags
from .thinking import CLOSING, FIELDS, in_field, keep_thinking, thinking_of

__all__ = ["Rendered", "Renderer", "strip_generation_tags"]

Message = Mapping[str, Any]
Span = tuple[int, int]

COSTLY = "template.costly"
"""Code of the error of a template that no row is at fault for."""
REFUSED = "template.render"
"""Code of the error of a conversation that the template does not write."""
MOST_SAID = 400
"""Characters of a template's own error that are passed on."""

GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and the half-open character ranges that the assistant wrote.

    ``context``: how many answers are left out of them, since the template drops their thinking.
    """

    text: str
    spans: list[Span]
    context: int = 0


class Renderer:
    """One compiled chat template.

    Args:
        source: Jinja text, with or without generation tags.
        bos_token: text of the tokenizer's BOS, or None when it has none.
        eos_token: likewise.
        special_tokens: further texts that end or open turns (added tokens of the tokenizer); used to find the
            end of a turn when the template has no generation tags.

    Raises:
        WhetError: ``template.syntax`` when the source does not compile.
    """

    def __init__(
        self,
        source: str,
        bos_token: str | None = None,
        eos_token: str | None = None,
        special_tokens: Sequence[str] = (),
    ) -> None:
        self.source = source
        self.bos_token = bos_token
        self.eos_token = eos_token
        named = {token for token in (bos_token, eos_token) if token}
        self.special_tokens = tuple(sorted(named.union(special_tokens), key=len, reverse=True))
        self.tagged = GENERATION_TAG.search(source) is not None
        self.reads_fields_alone = CLOSING not in source and any(name in source for name in FIELDS)
        """It knows thinking beside the content, and would print a block within as the answer."""
        self._next_tokens: dict[bool, str] = {}
        self._refused: WhetError | None = None
        # An absent token stays undefined, as in transformers: it prints as nothing.
        tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._variables = {name: token for name, token in tokens.items() if token is not None}
        self._environment = template_environment()
        try:
            self._template = self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise _uncompiled(f"line {error.lineno}: {error.message}") from error
        # A number of thousands of digits, halves of surrogate pairs, blocks deeper than Python compiles.
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise _uncompiled(f"{type(error).__name__}: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Sequence[Any] | None = None,
        **variables: Any,
    ) -> str:
        """The conversation as text.

        Arguments of tool calls are objects, as most templates want them, or else JSON.

        Raises:
            WhetError: ``template.render`` with the template's own complaint; ``template.costly`` for one that
                goes beyond :mod:`.bounds`, and then at once each time.
        """
        moved = map(in_field, messages) if self.reads_fields_alone else messages
        given = [with_reasoning(message) for message in moved]
        if not any(message.get("tool_calls") for message in given):
            return self.render_as_given(given, add_generation_prompt, tools, variables)
        try:
            text = self.render_as_given(given, add_generation_prompt, tools, variables)
        except WhetError as error:
            try:
                return self.render_as_given(with_json(given), add_generation_prompt, tools, variables)
            except WhetError:
                raise error from error.__cause__
        if any(repr(arguments) in text for arguments in argument_objects(given)):
            return self.render_as_given(with_json(given), add_generation_prompt, tools, variables)
        return text

    def render_as_given(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        tools: Sequence[Any] | None,
        variables: Mapping[str, Any],
    ) -> str:
        """As :meth:`render`, of messages as they are: nothing is filled in, moved or tried anew."""
        if self._refused is not None:
            raise self._refused
        self._environment.meter.begin()
        try:
            text = self._template.render(
                messages=messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                **{**self._variables, **variables},
            )
            text.encode()  # a half of a surrogate pair is no text that anything could tokenise
            return text
        except Overrun as error:
            self._refused = WhetError(
                COSTLY,
                f"The chat template is not rendered to its end: {error}.",
                "Use the template of a model you trust, or choose one with data.template.",
            )
            raise self._refused from error
        # A template is foreign code in a sandbox and raises what it likes: the message's fault, or its own.
        except Exception as error:
            raise WhetError(
                REFUSED,
                f"{REFUSES}: {_said(error)}",
                "Check the roles and contents of the row, or choose another template with data.template.",
            ) from error

    def render_with_spans(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None, **variables: Any
    ) -> Rendered:
        """The conversation as text, with the spans to supervise: each assistant turn, thinking and tool calls
        included, through its end token; not those whose thinking the template drops (:mod:`.thinking`).

        Raises:
            WhetError: ``template.render``; ``template.lost`` for tool calls that it does not print;
                ``template.spans`` when the spans cannot be told.
        """
        if self.tagged:
            self.refuse_lost_calls(messages, tools, **variables)
            rendered = _unmark(self.render(messages, tools=tools, _mark_generation=True, **variables))
        else:
            from .spans import derive_spans

            rendered = derive_spans(self, messages, tools, variables)
        return keep_thinking(self, rendered, messages, tools, variables)

    def render_all(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None, **variables: Any
    ) -> str:
        """The conversation as text that is learnt whole: with all tool calls, and the last answer's thinking.

        Raises:
            WhetError: as :meth:`render_with_spans`.
        """
        if any(message["role"] == "assistant" and thinking_of(message) for message in messages):
            return self.render_with_spans(messages, tools, **variables).text
        self.refuse_lost_calls(messages, tools, **variables)
        return self.render(messages, tools=tools, **variables)

    def refuse_lost_calls(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None, **variables: Any
    ) -> None:
        """Raise WhetError ``template.lost`` for tool calls that the template does not print."""
        for turn, message in enumerate(messages):
            if message.get("tool_calls"):
                probe = self.render(marked_calls(messages, turn), tools=tools, **variables)
                refuse_lost(probe, message, turn)

    @cached_property
    def end_token(self) -> str | None:
        """The special token that ends the last turn of a conversation; None when there is none."""
        from .spans import find_end_token

        return find_end_token(self)

    def special_at_start(self, text: str) -> str:
        """The special token that a text begins with, not BOS; else nothing."""
        found = next((token for token in self.special_tokens if text.startswith(token)), "")
        return "" if found == self.bos_token else found

    def next_token(self, call: bool) -> str:
        """What ends an answer, or a tool call, in a template without an end token: the next turn's own token,
        which the model is stopped at; nothing where turns have no such token."""
        if call not in self._next_tokens:
            from .spans import find_next_token

            try:
                self._next_tokens[call] = find_next_token(self, call)
            except WhetError:  # no such conversations here; rows that are some say so, with their place
                self._next_tokens[call] = ""
        return self._next_tokens[call]

    @cached_property
    def opening(self) -> str:
        """The generation prompt behind a question; nothing where the template has none."""
        asked: list[Message] = [{"role": "user", "content": "question"}]
        try:
            bare, prompt = self.render(asked), self.render(asked, add_generation_prompt=True)
        except WhetError:  # rows that it refuses say so, with their place
            return ""
        return prompt.removeprefix(bare) if prompt.startswith(bare) else ""

    @cached_property
    def end_of_turn(self) -> str | None:
        """What the model must write to end a turn, as text; None when the template writes no end token."""
        probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        try:
            rendered = self.render_with_spans(probe)
        except WhetError:
            # The template cannot do this conversation. Rows that are such conversations will say so, with
            # their place; plain text and `supervise: all` never ask.
            return None
        if not rendered.spans:
            return None
        start, end = rendered.spans[-1]
        tail = rendered.text[start:end].rpartition("answer")[2].strip()
        # A template may write a second one behind it, which is a fault (D17), not the end of the turn.
        return next((token for token in self.special_tokens if tail.startswith(token)), tail) or None

    @cached_property
    def end_of_call(self) -> str | None:
        """The special token that the model writes to end a turn with a tool call; None where it has none."""
        call = {"type": "function", "function": {"name": "probe", "arguments": {"a": "b"}}}
        question = {"role": "user", "content": "question"}
        probe: list[Message] = [question, {"role": "assistant", "content": "", "tool_calls": [call]}]
        try:
            rendered = self.render_with_spans(probe)
        except WhetError:
            return None  # such rows are refused, each with its place
        learnt = rendered.text[slice(*rendered.spans[-1])].rstrip() if rendered.spans else ""
        return next((token for token in self.special_tokens if learnt.endswith(token)), None)


def _uncompiled(why: str) -> WhetError:
    return WhetError(
        "template.syntax",
        f"The chat template does not compile: {why}.",
        "Repair it, or choose one by name with data.template (`whet template --list`).",
    )


def _unmark(marked: str) -> Rendered:
    """Take the marks out and turn them into spans."""
    pieces: list[str] = []
    spans: list[Span] = []
    length = 0
    for number, piece in enumerate(marked.split(OPEN)):
        inside, closed, after = piece.partition(CLOSE)
        if (number > 0) != bool(closed) or CLOSE in after:
            raise WhetError(
                "template.render",
                "A message contains the noncharacters U+FDD0 or U+FDD1, or generation tags are nested.",
                "Remove those characters from the row.",
            )
        if closed:
            if inside:
                spans.append((length, length + len(inside)))
            pieces += (inside, after)
            length += len(inside) + len(after)
        else:
            pieces.append(inside)
            length += len(inside)
    return Rendered("".join(pieces), spans)


def _said(error: Exception) -> str:
    """What an error says: the template's own words, as many as it likes."""
    words = str(error)
    return words if len(words) <= MOST_SAID else words[: MOST_SAID - 1] + "…"


def with_reasoning(message: Message) -> dict[str, Any]:
    """Fill ``reasoning_content`` from its other usual names, as transformers does."""
    reasoning = next((message[name] for name in FIELDS if message.get(name) is not None), None)
    if reasoning is None:
        return dict(message)
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}
