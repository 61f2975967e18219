"""What a tokenizer's chat template writes around messages, learnt by rendering sentinels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..data.chat_templates.of_tokenizer import rendered_as_given
from ..data.chat_templates.renderer import REFUSED
from ..data.rows import REFUSES
from ..errors import WhetError

ASK, ANSWER, AGAIN, LAST, SYSTEM = (f"SENTINEL{n}TEXT" for n in range(5))


@dataclass(frozen=True)
class TemplateParts:
    """The constant text of a template."""

    openings: tuple[str, ...]
    """How a conversation can begin, up to the first content: with a system message and without."""
    instruction: str
    """Opens a user turn."""
    response: str
    """Opens an assistant turn, as it stands between question and answer."""
    end: str
    """Follows the last answer, white space included; empty for a template that ends with the content."""


def template_parts(tokenizer: Any) -> TemplateParts:
    """Render short conversations and cut them at their sentinels.

    Raises:
        WhetError: `template.missing` without a chat template, `template.render` when it refuses a plain
            user/assistant exchange or changes the text it is given, `template.costly`.
    """
    if not tokenizer.chat_template:
        raise WhetError(
            "template.missing",
            "The tokenizer has no chat template.",
            'Set one: tokenizer = get_chat_template(tokenizer, chat_template="chatml").',
        )
    exchange = [_user(ASK), _assistant(ANSWER), _user(AGAIN), _assistant(LAST)]
    opening, between, following, _, end = _cut(_render(tokenizer, exchange), ASK, ANSWER, AGAIN, LAST)
    question_end = _cut(_render(tokenizer, [_user(ASK)]), ASK)[1]
    # White space in front of a marker belongs to the turn before it, and the first turn has none.
    response = between.removeprefix(question_end).lstrip() or between.lstrip()
    instruction = following.removeprefix(end).lstrip() or following.lstrip()
    return TemplateParts(
        openings=tuple(text for text in (opening, _system_opening(tokenizer)) if text.strip()),
        instruction=instruction,
        response=response,
        end=end,
    )


def markers_of(tokenizer: Any) -> tuple[str, str]:
    """`(instruction_part, response_part)` of the tokenizer's chat template.

    Raises:
        WhetError: as :func:`template_parts`; `template.no_markers` when a turn has no visible opening.
    """
    parts = template_parts(tokenizer)
    if not parts.instruction.strip() or not parts.response.strip():
        raise WhetError(
            "template.no_markers",
            f"The chat template opens turns with {parts.instruction!r} and {parts.response!r}.",
            "Give instruction_part and response_part, or set a template that marks its turns.",
        )
    return parts.instruction, parts.response


def _system_opening(tokenizer: Any) -> str:
    """Text before a system message's content; empty for a template that knows none or moves it elsewhere."""
    try:
        text = rendered_as_given(tokenizer, [{"role": "system", "content": SYSTEM}, _user(ASK)])
    except WhetError as error:
        if error.code != REFUSED:
            raise
        return ""  # e.g. Gemma's own template refuses the role
    return text.partition(SYSTEM)[0] if SYSTEM in text else ""


def _render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    try:
        return rendered_as_given(tokenizer, messages)
    except WhetError as error:
        if error.code != REFUSED:
            raise
        words = error.message.removeprefix(f"{REFUSES}: ")
        raise WhetError(
            REFUSED,
            f"The chat template refuses a plain user/assistant exchange: {words}.",
            "Preview it with `whet template`, or set another with get_chat_template.",
        ) from error


def _cut(text: str, *sentinels: str) -> list[str]:
    parts = []
    for sentinel in sentinels:
        before, found, text = text.partition(sentinel)
        if not found:
            raise WhetError(
                "template.render",
                f"The chat template does not write the content of a message ({sentinel!r} is missing).",
                "Set another template with get_chat_template.",
            )
        parts.append(before)
    return [*parts, text]


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}
