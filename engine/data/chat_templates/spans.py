"""Which characters the assistant wrote, for templates without generation tags (a model's own).

Two facts of any sane chat template decide. The text before a turn plus the generation prompt is a prefix of
the whole text, so the turn begins where that prefix ends. And the text after a turn's content does not depend
on the content, so rendering once more with a sentinel in its place shows where the content ends. The
end-of-turn token that follows belongs to the turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import WhetError
from .call_spans import call_span, closing_length
from .turn_starts import turn_start

if TYPE_CHECKING:
    from .renderer import Message, Rendered, Renderer, Span

SENTINEL = "\ufdd2answer\ufdd3"


def derive_spans(
    renderer: Renderer,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    variables: Mapping[str, Any],
) -> Rendered:
    """Spans of every assistant turn.

    Raises:
        WhetError: ``template.spans`` when the template's text around a turn depends on what is in it.
    """
    from .renderer import Rendered

    text = renderer.render(messages, tools=tools, **variables)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    spans: list[Span] = []
    for turn in turns:
        if messages[turn].get("tool_calls"):
            spans.append(call_span(renderer, messages, turn, text, tools, variables))
            continue
        probe = renderer.render(_replaced(messages, turn), tools=tools, **variables)
        if probe.count(SENTINEL) != 1:
            raise _unclear(turn, "the template does not print its content once, as it stands")
        head, tail = probe.split(SENTINEL)
        if not text.endswith(tail):
            raise _unclear(turn, "what follows it depends on its content")
        closing = _end_of_turn(renderer, tail)
        if not closing and turn + 1 < len(messages):
            closing = _other_end(renderer, messages[: turn + 1], tail, tools, variables)
        end = len(text) - len(tail) + closing
        start = turn_start(renderer, messages, turn, text, partial(str, head), tools, variables)
        if start is None:
            raise _unclear(turn, "what stands before it depends on its content")
        spans.append((start, end))
    if spans and turns[-1] == len(messages) - 1 and spans[-1][1] == len(text):
        # Where the next turn's token ends a turn, it does so behind the last one too.
        text += renderer.next_token(bool(messages[-1].get("tool_calls")))
        spans[-1] = (spans[-1][0], len(text))
    return Rendered(text, spans)


def _end_of_turn(renderer: Renderer, tail: str) -> int:
    """Length of the end-of-turn token (and space before it) that ``tail`` begins with, or 0."""
    if renderer.end_token is None:
        return 0
    match = re.match(r"\s*" + re.escape(renderer.end_token), tail)
    return match.end() if match else 0


def _other_end(
    renderer: Renderer,
    messages: Sequence[Message],
    tail: str,
    tools: Sequence[Any] | None,
    variables: Mapping[str, Any],
) -> int:
    """The same for a turn that ends otherwise than the conversation's last one does."""
    alone = renderer.render(_replaced(messages, len(messages) - 1), tools=tools, **variables)
    return closing_length(renderer, tail, alone.partition(SENTINEL)[2])


def find_end_token(renderer: Renderer) -> str | None:
    """The first special token after a conversation's last answer: no header of a next turn is there."""
    probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": SENTINEL}]
    tail = renderer.render(probe).partition(SENTINEL)[2].lstrip()
    return next((token for token in renderer.special_tokens if tail.startswith(token)), None)


def find_next_token(renderer: Renderer, call: bool) -> str:
    """The special token that begins the turn behind an answer, or behind a tool call, where the template
    writes none that ends these; else nothing."""
    if renderer.end_token is not None:
        return ""
    asked: Message = {"role": "user", "content": "question"}
    called = {"type": "function", "function": {"name": "probe", "arguments": {"a": "b"}}}
    answer: Message = {"role": "assistant", "content": "answer"}
    follows: Message = asked
    if call:
        answer = {"role": "assistant", "content": "", "tool_calls": [called]}
        follows = {"role": "tool", "name": "probe", "content": "result"}
    alone, whole = renderer.render([asked, answer]), renderer.render([asked, answer, follows])
    behind = whole.removeprefix(alone) if whole.startswith(alone) else ""
    return renderer.special_at_start(behind)


def _replaced(messages: Sequence[Message], turn: int) -> list[Message]:
    replaced = list(messages)
    replaced[turn] = {**messages[turn], "content": SENTINEL}
    return replaced


def _unclear(turn: int, why: str) -> WhetError:
    return WhetError(
        "template.spans",
        f"Cannot tell which tokens the assistant wrote in message {turn + 1}: {why}.",
        "Put {% generation %} tags into the model's chat template, choose one by name with data.template, or "
        "supervise all tokens with method.supervise=all.",
    )
