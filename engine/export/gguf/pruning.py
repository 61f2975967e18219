"""A byte-level BPE tokenizer cut down to its first merges: quick to try many pre-tokenizers on. Light.

Which words a text is split into does not depend on the vocabulary, so a small one tells the rules apart as
well, and llama.cpp loads it in milliseconds instead of seconds.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .token_list import NORMAL, merges_of
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MERGES = 4000


def pruned(spec: dict[str, Any]) -> tuple[Tokenizer, Vocabulary]:
    """The same splitting and the first merges, without added tokens; for both sides."""
    from tokenizers import Tokenizer

    model = spec["model"]
    merges = merges_of(model)[:MERGES]
    alphabet = [text for text in model["vocab"] if len(text) == 1]
    pairs = (merge.split(" ", 1) for merge in merges)
    tokens = list(dict.fromkeys([*alphabet, *(text for a, b in pairs for text in (a, b, a + b))]))
    small = {
        **spec,
        "added_tokens": [],
        "post_processor": None,
        "truncation": None,
        "padding": None,
        "model": {
            **model,
            "vocab": {text: id for id, text in enumerate(tokens)},
            "merges": merges,
            "unk_token": None,
        },
    }
    vocabulary = Vocabulary("gpt2", tokens, [NORMAL] * len(tokens), merges=merges)
    return Tokenizer.from_str(json.dumps(small)), vocabulary
