"""What a transformers tokenizer's own template writes, rendered here: transformers' sandbox has no bounds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ...errors import WhetError
from .renderer import Message, Renderer


def rendered(tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """The text that ``apply_chat_template`` gives without tokenizing.

    Args:
        tokenizer: of transformers, with a chat template; only attributes are read.

    Raises:
        WhetError: ``template.missing`` where none of several templates is the usual one; else as
            :meth:`Renderer.render`.
    """
    source = tokenizer.chat_template
    source = source.get("default") if isinstance(source, dict) else source
    if source is None:
        raise WhetError(
            "template.missing",
            "The tokenizer has several chat templates, none of which is called default.",
            "Name the one to use so, in tokenizer_config.json.",
        )
    renderer = _renderer(source, tokenizer.bos_token, tokenizer.eos_token)
    return renderer.render(messages, add_generation_prompt, **tokenizer.special_tokens_map)


@lru_cache(maxsize=8)
def _renderer(source: str, bos: str | None, eos: str | None) -> Renderer:
    return Renderer(source, bos, eos)
