"""Template markers written literally in the data: would-be special tokens, or placeholders left over."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .chat_templates import TEMPLATES
from .formats import Example

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CANDIDATE = re.compile(r"<\|?[\w./ -]{1,40}\|?>|<</?SYS>>|\[/?[A-Z_]{2,24}\]|\{[a-z_]{2,20}\}|### [A-Z]\w+:")
_BRACKETS = ("<", "[", "{", "### ")
_PLACEHOLDERS = ("{instruction}", "{input}", "{output}", "{response}", "{prompt}", "{question}", "{answer}")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|^[^\n]*(?:\b[fF][\"']|\.format\()[^\n]*$", re.S | re.M)
"""Fenced and quoted code, and lines of Python that fill in their own names."""
_THOUGHTS = {"<think>", "</think>"}
"""Written into answers on purpose; some vocabularies call them special."""
_PLAIN_TEXT_MARKERS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "### Instruction:", "### Response:")


class MarkerScan:
    """Finds literal markers in rows.

    Args:
        tokenizer: decides which markers are single special tokens of this vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = tokenizer.get_added_tokens_decoder().values()
        self._special = frozenset(token.content for token in added if token.special) - _THOUGHTS
        self._known = {marker for info in TEMPLATES.values() for marker in info.markers}
        single = self._special.union(token.content for token in added)
        self._foreign = self._known.union(_PLAIN_TEXT_MARKERS, _PLACEHOLDERS) - single

    def find(self, example: Example) -> list[tuple[str, bool]]:
        """Markers in one example, each once, and whether it is a special token here.

        Special tokens in a plain text are meant (it may be a rendered conversation), in a message not.
        """
        if example.messages is None:
            text = f"{example.text or ''}{example.prompt or ''}{example.completion or ''}"
        else:
            text = "\n".join(message["content"] for message in example.messages)
        if not any(bracket in text for bracket in _BRACKETS):
            return []
        chat = example.messages is not None
        found = dict.fromkeys(_CANDIDATE.findall(text))
        kept = [one for one in found if one in self._foreign or (chat and one in self._special)]
        if any(one in _PLACEHOLDERS for one in kept):  # in code they are names
            prose = _CODE.sub("", text)
            kept = [one for one in kept if one not in _PLACEHOLDERS or one in prose]
        return [(marker, marker in self._special) for marker in kept]

    def written(self, text: str) -> list[str]:
        """Markers of any known template in a text, whether they are tokens here or not."""
        return [marker for marker in dict.fromkeys(_CANDIDATE.findall(text)) if marker in self._known]
