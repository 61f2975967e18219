"""Which characters of an assistant's turn with tool calls it wrote, whatever a template makes of the calls.

Its calls and its content are changed, and the conversation rendered again: what follows the last character
that changed is not the calls' own, and the turn ends where its closing stands in that. The closing is what
follows the calls when the turn is the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import WhetError
from .turn_starts import common_end, common_start, turn_start

if TYPE_CHECKING:
    from .renderer import Message, Renderer, Span

MARK = "\ufdd2{}\ufdd3"
"""Noncharacters of Unicode: no text has them, and none can look like the end of one."""


def call_span(
    renderer: Renderer,
    messages: Sequence[Message],
    turn: int,
    text: str,
    tools: Sequence[Any] | None,
    variables: Mapping[str, Any],
) -> Span:
    """From behind the generation prompt through the turn's end token.

    Args:
        messages: the conversation.
        turn: of them, with tool calls.
        text: the conversation, rendered.

    Raises:
        WhetError: ``template.lost`` for calls that the template does not print, ``template.spans`` where the
            turn's text cannot be told from the rest.
    """
    changed = marked_calls(messages, turn)
    probe = renderer.render(changed, tools=tools, **variables)
    refuse_lost(probe, messages[turn], turn)
    tail = common_end(text, probe)
    before = len(text) - len(tail)
    own = _own_length(renderer, messages, turn, text, tools, variables)
    end = before + _first_end(renderer, tail[: max(0, own - before)])
    if end == before:
        alone = renderer.render(messages[: turn + 1], tools=tools, **variables)
        closing = common_end(alone, renderer.render(changed[: turn + 1], tools=tools, **variables))
        end = before + closing_length(renderer, tail, closing)

    def head() -> str:
        return _plain_head(renderer, messages, turn, tools, variables)

    start = turn_start(renderer, messages, turn, text, head, tools, variables)
    if start is None or start >= end or end > own:
        raise WhetError(
            "template.spans",
            f"Cannot tell which tokens the assistant wrote in message {turn + 1}: the template mixes its "
            "tool calls with other messages.",
            "Leave its content out where it calls a tool, choose another template with data.template, or "
            "supervise all tokens with method.supervise=all.",
        )
    return start, end


def marked_calls(messages: Sequence[Message], turn: int) -> list[Message]:
    """The conversation with other arguments in each call of a turn, and other content where it has some."""
    message = dict(messages[turn])
    calls = []
    for number, call in enumerate(message["tool_calls"]):
        function = call["function"]
        given = function["arguments"]
        names = list(given) if isinstance(given, Mapping) else []
        marks: Any = {name: MARK.format(number) for name in names or ["argument"]}
        arguments = MARK.format(number) if isinstance(given, str) else marks
        calls.append({**call, "function": {**function, "arguments": arguments}})
    message["tool_calls"] = calls
    if message.get("content"):
        message["content"] = MARK.format("content")
    return [*messages[:turn], message, *messages[turn + 1 :]]


def refuse_lost(probe: str, message: Message, turn: int) -> None:
    """Raise WhetError ``template.lost`` unless all calls of a marked turn stand in the text."""
    calls = len(message["tool_calls"])
    printed = sum(MARK.format(number) in probe for number in range(calls))
    if printed < calls:
        what = "no tool calls" if not printed else "one tool call a message"
        raise WhetError(
            "template.lost",
            f"The chat template writes {what}: {calls - printed} of message {turn + 1} would be lost.",
            "Use a template that has them: the instruct model's own, or another by data.template.",
        )


def closing_length(renderer: Renderer, tail: str, closing: str) -> int:
    """How much of ``tail``, the text behind what a turn says, is the turn's own: through its end token.

    Args:
        tail: in the conversation.
        closing: the same where the turn is the last one.
    """
    shared = common_start(tail, closing)
    if renderer.end_token is None:
        # The next turn's own token ends this one, and the model is stopped at it (GLM).
        token = renderer.special_at_start(tail[len(shared) :])
        return len(shared) + len(token) if token else len(shared.rstrip())
    if renderer.end_token in shared:
        return shared.index(renderer.end_token) + len(renderer.end_token)
    ends = [shared.rfind(token) + len(token) for token in renderer.special_tokens if token in shared]
    if ends:
        return max(ends)
    # A turn may end otherwise when it is the last one, but with one token here and there.
    here, there = (_special_across(renderer, one, len(shared)) for one in (tail, closing))
    return here if here and there else len(shared.rstrip())


def _special_across(renderer: Renderer, text: str, at: int) -> int:
    """Where the special token ends that begins at ``at``, or before it and ends behind it; 0 for none."""
    for token in renderer.special_tokens:
        found = text.find(token, max(0, at - len(token) + 1))
        if 0 <= found <= at:
            return found + len(token)
    return 0


def _plain_head(
    renderer: Renderer,
    messages: Sequence[Message],
    turn: int,
    tools: Sequence[Any] | None,
    variables: Mapping[str, Any],
) -> str:
    """What would stand before an answer in the turn's place."""
    following = next((at for at in range(turn + 1, len(messages)) if messages[at]["role"] == "user"), None)
    rest = [] if following is None else list(messages[following:])
    answer = {"role": "assistant", "content": MARK.format("answer")}
    plain = renderer.render([*messages[:turn], answer, *rest], tools=tools, **variables)
    return plain.partition(answer["content"])[0]


def _first_end(renderer: Renderer, closing: str) -> int:
    """Where the end token of answers ends in the text behind a turn's calls; 0 where it is not there."""
    token = renderer.end_token
    return closing.find(token) + len(token) if token is not None and token in closing else 0


def _own_length(
    renderer: Renderer,
    messages: Sequence[Message],
    turn: int,
    text: str,
    tools: Sequence[Any] | None,
    variables: Mapping[str, Any],
) -> int:
    """How much of the text does not change with what stands in later messages."""
    if turn + 1 == len(messages):
        return len(text)
    later = renderer.render(_later_marked(messages, turn), tools=tools, **variables)
    return len(common_start(text, later))


def _later_marked(messages: Sequence[Message], turn: int) -> list[Message]:
    later = [
        {**message, "content": MARK.format("later")} if message["role"] in ("tool", "user") else message
        for message in messages[turn + 1 :]
    ]
    return [*messages[: turn + 1], *later]
