"""What a transformers tokenizer's own template writes, rendered here: transformers' sandbox has no bounds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ...errors import WhetError
from .renderer import Message, Renderer, with_reasoning


def rendered(tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """The text that ``apply_chat_template`` gives without tokenizing.

    Args:
        tokenizer: of transformers, with a chat template; only attributes are read.

    Raises:
        WhetError: ``template.missing`` where none of several templates is the usual one; else as
            :meth:`Renderer.render`.
    """
    renderer = _renderer_of(tokenizer)
    return renderer.render(messages, add_generation_prompt, **tokenizer.special_tokens_map)


def rendered_as_given(
    tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool = False, **variables: Any
) -> str:
    """As :func:`rendered`, and what ``apply_chat_template`` gives also where another form of the thinking or
    of the tool calls would suit the template.

    Args:
        **variables: for the template, as ``apply_chat_template`` takes them.
    """
    given = [
        with_reasoning({name: value for name, value in message.items() if value is not None})
        for message in messages
    ]
    values = {**tokenizer.special_tokens_map, "documents": None, **variables}
    return _renderer_of(tokenizer).render_as_given(given, add_generation_prompt, None, values)


def _renderer_of(tokenizer: Any) -> Renderer:
    source = tokenizer.chat_template
    source = source.get("default") if isinstance(source, dict) else source
    if source is None:
        raise WhetError(
            "template.missing",
            "The tokenizer has several chat templates, none of which is called default.",
            "Name the one to use so, in tokenizer_config.json.",
        )
    return _compiled(source, tokenizer.bos_token, tokenizer.eos_token)


@lru_cache(maxsize=8)
def _compiled(source: str, bos: str | None, eos: str | None) -> Renderer:
    return Renderer(source, bos, eos)
