"""Added tokens that swallow the space beside them: which of these llama.cpp can be told of. Light.

A GGUF has no place for these flags. llama.cpp sets them for two families, by a part of the model's name:
"phi-3" (all special tokens but three swallow the space after them) and "modern-bert" ([MASK] the one before).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PHI_3, MODERN_BERT = "phi-3", "modern-bert"
PHI_3_EXEMPT = ("<unk>", "<s>", "<|endoftext|>")
PHI_3_NEEDS = (*PHI_3_EXEMPT, "</s>")
"""Tokens without which llama.cpp cannot load a model of that name."""


def name_mark(tokenizer: Tokenizer) -> str:
    """The part of ``general.name`` under which llama.cpp gives the added tokens their flags; often none."""
    added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    after = {text for text, token in added.items() if token.rstrip}
    before = {text for text, token in added.items() if token.lstrip}
    if not before and after == added.keys() - set(PHI_3_EXEMPT) and added.keys() >= set(PHI_3_NEEDS):
        return PHI_3
    return MODERN_BERT if before == {"[MASK]"} and not after else ""
