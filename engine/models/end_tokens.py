"""At which tokens generation ends: what a fine-tuned model was taught belongs into its generation config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import WhetError


def add_end_tokens(model: Any, tokenizer: Any, texts: Sequence[str]) -> bool:
    """Let the model's generation end at these tokens too; whether that changed anything.

    Args:
        model: a transformers model that generates; its ``generation_config`` is changed.
        tokenizer: of the model.
        texts: each one token of the vocabulary.

    Raises:
        WhetError: ``model.end_tokens`` for a text that is no token.
    """
    configured = model.generation_config.eos_token_id
    before = list(configured) if isinstance(configured, list | tuple) else [configured]
    ends = [token for token in before if token is not None]
    vocabulary = tokenizer.get_vocab()
    for text in texts:
        if text not in vocabulary:
            raise WhetError(
                "model.end_tokens",
                f"{text!r} is no token of this model's vocabulary, so no answer can end with it.",
                "Name tokens as `whet template MODEL DATA` shows them.",
            )
        if vocabulary[text] not in ends:
            ends.append(vocabulary[text])
    if ends == before:
        return False
    model.generation_config.eos_token_id = ends
    return True
