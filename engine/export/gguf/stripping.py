"""Added tokens that swallow the space beside them: which llama.cpp knows of. Light.

A GGUF has no place for these flags. llama.cpp sets one of them, and only for models with "phi-3" in their
name: every special token but three swallows the space after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PHI_3_NAME = "phi-3"
"""The part of ``general.name`` that llama.cpp looks for."""
PHI_3_EXEMPT = ("<unk>", "<s>", "<|endoftext|>")
PHI_3_NEEDS = (*PHI_3_EXEMPT, "</s>")
"""Tokens without which llama.cpp cannot load a model of that name."""


def strips_like_phi_3(tokenizer: Tokenizer) -> bool:
    """Whether the added tokens have the flags that llama.cpp gives Phi-3's."""
    added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    if any(text not in added for text in PHI_3_NEEDS):
        return False
    return all(
        not token.lstrip and token.rstrip == (text not in PHI_3_EXEMPT) for text, token in added.items()
    )
