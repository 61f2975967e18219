"""The space that SentencePiece-style tokenizers put in front of a text, and what llama.cpp can do. Light.

tokenizer.json has four ways: never, before every stretch of text between special tokens (a ``Prepend``),
before such a stretch unless it begins with a space (``Metaspace`` "always"), or so only at the very beginning
("first"). llama.cpp has two: never, or before every stretch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...data.chat_templates.renderer import Renderer
from ...data.tokenizer_files import TokenizerFiles
from ...errors import WhetError
from .steps import parts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Scheme = Literal["never", "every", "always", "first"]


@dataclass(frozen=True)
class SpacePrefix:
    """What to write, and how texts are best compared."""

    scheme: Scheme
    add: bool
    """llama.cpp's ``add_space_prefix``."""
    lead: str = ""
    """What a conversation begins with where it decides: texts behave as in training when they follow it."""


def space_scheme(normalizer: dict[str, Any] | None, pre_tokenizer: dict[str, Any] | None) -> Scheme:
    """The way of a tokenizer.json, from its two steps."""
    for step in (*parts(normalizer), *parts(pre_tokenizer)):
        if step["type"] == "Prepend":
            return "every"
        if step["type"] == "Metaspace":
            scheme: Scheme = step.get("prepend_scheme", "always")
            return scheme
    return "never"


def scheme_of(tokenizer: Tokenizer) -> Scheme:
    """The way of a loaded tokenizer."""
    return space_scheme(*(state(step) for step in (tokenizer.normalizer, tokenizer.pre_tokenizer)))


def state(step: Any) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer as tokenizer.json writes it."""
    if step is None:
        return None
    found: dict[str, Any] = json.loads(step.__getstate__())
    return found


def space_prefix(tokenizer: Tokenizer, files: TokenizerFiles) -> SpacePrefix:
    """The choice for a model folder.

    Under "first", conversations that begin with a special token never get the space, plain text at the
    beginning does. llama.cpp does one or the other, so the chat template decides: it is what was trained on.
    """
    scheme = scheme_of(tokenizer)
    if scheme == "first" and (lead := _conversation_lead(tokenizer, files)):
        return SpacePrefix(scheme, False, lead)
    return SpacePrefix(scheme, scheme != "never")


def _conversation_lead(tokenizer: Tokenizer, files: TokenizerFiles) -> str:
    """The special token that conversations begin with; empty without template or before plain text."""
    if files.chat_template is None:
        return ""
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    renderer = Renderer(files.chat_template, files.bos_token, files.eos_token, added)
    try:
        text = renderer.render([{"role": "user", "content": "a"}], add_generation_prompt=True)
    except WhetError as error:
        if error.code != "template.render":
            raise
        return ""
    return max((token for token in added if text.startswith(token)), key=len, default="")
