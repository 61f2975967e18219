"""Where the model begins to write an assistant's turn: behind the generation prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .renderer import Message, Renderer

MARK = "\ufdd2before\ufdd3"


def turn_start(
    renderer: Renderer,
    messages: Sequence[Message],
    turn: int,
    text: str,
    head: Callable[[], str],
    tools: Sequence[Any] | None,
    variables: Mapping[str, Any],
) -> int | None:
    """Where the turn's own text begins; None where that cannot be told.

    Args:
        messages: the conversation.
        turn: of them, an assistant's.
        text: the conversation, rendered.
        head: gives the text before an answer in the turn's place.
    """
    earlier = messages[:turn]
    if earlier:
        prompt = renderer.render(earlier, add_generation_prompt=True, tools=tools, **variables)
        if renderer.opening and prompt.endswith(renderer.opening) and text.startswith(prompt):
            return len(prompt)
        bare = renderer.render(earlier, tools=tools, **variables)
        # A template may have no generation prompt: then a header may stand before the content, and it is not
        # the model's to write.
        if text.startswith(prompt) and (prompt != bare or not head()[len(prompt) :].strip()):
            return len(prompt)
        # Earlier turns may be written otherwise in the whole conversation, say without their thinking.
        opening = prompt.removeprefix(bare) if prompt.startswith(bare) else ""
        behind = _behind(renderer, messages, turn - 1, text, tools, variables)
        if opening.strip() and opening in behind[: len(behind) - len(text) + len(head())]:
            return len(text) - len(behind) + behind.index(opening) + len(opening)
    plain = head()
    return len(plain) if text.startswith(plain) else None


def _behind(
    renderer: Renderer,
    messages: Sequence[Message],
    before: int,
    text: str,
    tools: Sequence[Any] | None,
    variables: Mapping[str, Any],
) -> str:
    """The text behind the content of message ``before``."""
    changed = [*messages[:before], {**messages[before], "content": MARK}, *messages[before + 1 :]]
    return common_end(text, renderer.render(changed, tools=tools, **variables))


def common_start(left: str, right: str) -> str:
    """The longest text that both begin with."""
    low, high = 0, min(len(left), len(right))
    while low < high:  # halves compared at once: texts are long
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return left[:low]


def common_end(left: str, right: str) -> str:
    """The longest text that both end with."""
    return common_start(left[::-1], right[::-1])[::-1]
