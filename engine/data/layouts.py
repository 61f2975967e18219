"""Which layouts of rows each method learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from .answers import answer_layout, compared_layout
from .labelled import classification_layout, token_layout
from .pairs import embedding_layout, reranker_layout
from .prompts import prompt_layout
from .rows import RawRow
from .speech import speech_layout
from .spoken import spoken_layout
from .tables import Layout

if TYPE_CHECKING:
    from ..recipe import MethodSection

READS = {
    "embedding": "pairs (anchor, positive), triplets (anchor, positive, negative), scored pairs (anchor, "
    "positive, score) and labelled texts (text, label)",
    "classification": "texts (text) or pairs of texts (text, text_pair) with a class (label) or a list of "
    "classes (labels)",
    "token_classification": "lists of words (tokens) with a list of as many tags (tags or ner_tags)",
    "preference": "compared answers (prompt, chosen, rejected; or whole conversations as chosen and "
    "rejected) and rated ones (prompt, completion, label: true or false)",
    "reward": "compared answers (prompt, chosen, rejected; or whole conversations as chosen and rejected)",
    "grpo": "prompts (prompt: a text or a list of messages) with the columns that the rewards read",
    "tts": "texts (text) with the codes of their sound (codes), or with the sound itself (audio)",
    "speech": "recordings (audio: a path, or as `datasets` gives them) with what is said in them (text)",
    "reranker": "scored pairs (query, document, score), pairs (query, positive) and triplets (query, "
    "positive, negative, negative_1, ...)",
}
FIND: dict[str, Callable[[Sequence[RawRow], Mapping[str, str]], Layout | None]] = {
    "embedding": embedding_layout,
    "classification": classification_layout,
    "token_classification": token_layout,
    "preference": answer_layout,
    "reward": compared_layout,
    "grpo": prompt_layout,
    "reranker": reranker_layout,
    "speech": speech_layout,
    "tts": spoken_layout,
}


def find_layout(method: MethodSection, rows: Sequence[RawRow], columns: Mapping[str, str]) -> Layout | None:
    """The layout of the first rows of a source; None where the method has none like it."""
    return FIND[method.kind](rows, columns)


def wanted_layouts(method: MethodSection) -> str:
    """In words."""
    return READS[method.kind]
