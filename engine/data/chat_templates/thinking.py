"""Thinking in answers: where a message has it, whether a template writes it, what is learnt if it does not.

Templates drop the thinking of answers before the last question, since a model is asked without it. Such an
answer is context: learnt, it would teach to answer without thinking. Some templates drop, or know nothing of,
thinking at all; the last answer's then stands where the model would write it, behind the generation prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import WhetError

if TYPE_CHECKING:
    from .renderer import Message, Rendered, Renderer

FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names of it beside the content."""
OPENING, CLOSING = "<think>", "</think>"
_BLOCK = re.compile(rf"\s*{OPENING}(.*?){CLOSING}\s*", re.DOTALL)
MARK = "\ufdd2thinking\ufdd3"


def thinking_of(message: Message) -> str:
    """The thinking before an answer: of its own field, or a block at the content's beginning; else ''."""
    named = next((message[name] for name in FIELDS if isinstance(message.get(name), str)), None)
    if named is not None:
        return str(named).strip()
    block = _BLOCK.match(str(message.get("content") or ""))
    return block[1].strip() if block else ""


def without_thinking(message: Message) -> dict[str, Any]:
    """The message with its answer alone."""
    left = {name: value for name, value in message.items() if name not in FIELDS}
    content = left.get("content")
    if not isinstance(content, str) or _BLOCK.match(content) is None:
        return left
    return {**left, "content": _BLOCK.sub("", content, count=1)}


def in_field(message: Message) -> Message:
    """The message with a block of thinking in its content moved to the field for it."""
    content = message.get("content")
    if not isinstance(content, str) or _BLOCK.match(content) is None:
        return message
    return {**without_thinking(message), FIELDS[0]: thinking_of(message)}


def keep_thinking(
    renderer: Renderer,
    rendered: Rendered,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    variables: Mapping[str, Any],
) -> Rendered:
    """Answers without the thinking that they had are context; the last one gets it back.

    Args:
        rendered: the conversation, with a span for each of the assistant's turns.

    Raises:
        WhetError: ``template.spans`` where the spans are not one a turn.
    """
    from .renderer import Rendered

    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    lost = [at for at in turns if _is_lost(renderer, messages, at, tools, variables)]
    if not lost:
        return rendered
    if len(rendered.spans) != len(turns):
        raise WhetError(
            "template.spans",
            f"The template's generation tags enclose {len(rendered.spans)} texts, the row has {len(turns)} "
            "answers, some of whose thinking the template drops.",
            "Enclose each of the assistant's turns once, or leave the thinking out with data.reasoning=drop.",
        )
    spans = [span for at, span in zip(turns, rendered.spans, strict=True) if at not in lost]
    last = len(messages) - 1
    if last not in lost:
        return Rendered(rendered.text, spans, context=len(lost))
    if last == 0 or renderer.reads_fields_alone:
        raise WhetError(
            "template.lost",
            f"The chat template drops the thinking of message {last + 1}, the last answer.",
            "Learn the answers alone with data.reasoning=drop, or use a template that writes their thinking.",
        )
    prompt = renderer.render(messages[:-1], add_generation_prompt=True, tools=tools, **variables)
    start, end = rendered.spans[-1]
    opened = prompt.rstrip().endswith(OPENING)
    opening = ("" if prompt.endswith("\n") else "\n") if opened else f"{OPENING}\n"
    answer = rendered.text[start:end].lstrip("\n")
    written = f"{opening}{thinking_of(messages[-1])}\n{CLOSING}\n\n{answer}"
    earlier = [span for span in spans if rendered.text[: span[1]] == prompt[: span[1]]]
    whole = (len(prompt), len(prompt) + len(written))
    return Rendered(prompt + written, [*earlier, whole], context=len(turns) - 1 - len(earlier))


def _is_lost(
    renderer: Renderer,
    messages: Sequence[Message],
    turn: int,
    tools: Sequence[Any] | None,
    variables: Mapping[str, Any],
) -> bool:
    """Whether a turn has thinking that the template does not print."""
    message = messages[turn]
    if not thinking_of(message):
        return False
    marked = {name: MARK for name in FIELDS if message.get(name) is not None}
    if not marked:
        marked = {"content": f"{OPENING}\n{MARK}\n{CLOSING}\n\n{without_thinking(message)['content']}"}
    changed = [*messages[:turn], {**message, **marked}, *messages[turn + 1 :]]
    return MARK not in renderer.render(changed, tools=tools, **variables)
