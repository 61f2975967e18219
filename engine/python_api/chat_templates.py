"""Chat templates for scripts: set one on a tokenizer, standardise conversations, supervise responses only."""

from __future__ import annotations

from typing import Any

from ..data.chat_templates import ChatTemplate, find
from ..data.chat_templates.renderer import Renderer
from ..data.formats import standardize_sharegpt
from ..errors import WhetError
from .notes import say
from .responses import train_on_responses_only

__all__ = ["get_chat_template", "standardize_sharegpt", "train_on_responses_only"]

DEFAULT_MAPPING = {"role": "role", "content": "content", "user": "user", "assistant": "assistant"}

# Written before a template so that it reads rows under other field names; rows in the usual form pass as
# they are.
_MAPPED = """\
{{%- set canonical = namespace(messages=[]) %}}
{{%- for message in messages %}}
{{%- if {role!r} in message %}}
{{%- set name = {names}.get(message[{role!r}], message[{role!r}]) %}}
{{%- set canonical.messages = canonical.messages + [{{'role': name, 'content': message[{content!r}]}}] %}}
{{%- else %}}
{{%- set canonical.messages = canonical.messages + [message] %}}
{{%- endif %}}
{{%- endfor %}}
{{%- set messages = canonical.messages %}}
"""


def get_chat_template(
    tokenizer: Any,
    chat_template: str | tuple[str, str] = "chatml",
    mapping: dict[str, str] | None = None,
    map_eos_token: bool = True,
    system_message: str | None = None,
) -> Any:
    """Set a chat template on the tokenizer.

    Args:
        tokenizer: a transformers tokenizer; changed in place.
        chat_template: a name (`whet template --list`), a Jinja text, or `(Jinja text, end-of-turn token)`.
        mapping: field and role names of conversations that are not in role/content form, e.g.
            ``{"role": "from", "content": "value", "user": "human", "assistant": "gpt"}``.
        map_eos_token: make the template's end-of-turn token the tokenizer's EOS, so that generation stops
            there.
        system_message: used for conversations that begin without one.

    Returns:
        The same tokenizer.

    Raises:
        WhetError: `template.unknown` with the nearest names, `template.syntax` for Jinja that does not
            compile.
    """
    source, end = _source_of(chat_template)
    vocabulary = tokenizer.get_vocab()
    if end is not None and end not in vocabulary and tokenizer.eos_token and end in source:
        say(
            f"{end!r} is no token of this vocabulary, so turns end with its EOS {tokenizer.eos_token!r}; "
            "the template's other markers are written as plain text where they are no tokens either."
        )
        source, end = source.replace(end, tokenizer.eos_token), tokenizer.eos_token
    if map_eos_token and end is not None and end in vocabulary:
        tokenizer.eos_token = end
    if system_message is not None:
        source = _with_system(system_message) + source
    if mapping is not None and mapping != DEFAULT_MAPPING:
        source = _with_mapping(mapping) + source
    Renderer(source, tokenizer.bos_token, tokenizer.eos_token)  # compiles, or says why not
    tokenizer.chat_template = source
    return tokenizer


def _source_of(chat_template: str | tuple[str, str]) -> tuple[str, str | None]:
    """Jinja text, and the end-of-turn token where one is known."""
    if isinstance(chat_template, tuple):
        source, end = chat_template
        return source, end
    if "{{" in chat_template or "{%" in chat_template:
        return chat_template, None
    known: ChatTemplate = find(chat_template)
    return known.source, known.end_of_turn


def _with_system(text: str) -> str:
    message = f"[{{'role': 'system', 'content': {text!r}}}]"
    missing = "{%- if messages[0]['role'] != 'system' %}"
    return f"{missing}{{%- set messages = {message} + messages %}}{{%- endif %}}\n"


def _with_mapping(mapping: dict[str, str]) -> str:
    unknown = sorted(set(mapping) - set(DEFAULT_MAPPING) - {"system"})
    if unknown:
        raise WhetError(
            "template.mapping",
            f"mapping has the keys {', '.join(unknown)}.",
            "It knows role, content, user, assistant and system.",
        )
    names = {mapping[role]: role for role in ("user", "assistant", "system") if role in mapping}
    return _MAPPED.format(
        role=mapping.get("role", "role"), content=mapping.get("content", "content"), names=names
    )
