"""What a loaded tokenizer does, as far as llama.cpp is known to do it otherwise. Light."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .pretokenizer import signature
from .space_prefix import Scheme, scheme_of, state
from .steps import parts
from .stripping import name_mark

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Texts that llama.cpp takes for special tokens wherever a vocabulary lists them.
SPECIAL_BY_NAME = (
    "</s>", "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>",
    "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<eos>", "<end_of_utterance>", "<|eom_id|>",
    "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<turn|>", "<|tool_response>", "<|fim_prefix|>",
    "<fim-prefix>", "<fim_prefix>", "<PRE>", "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>",
    "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "<|fim_pad|>", "<fim-pad>", "<fim_pad>",
    "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>",
    "<|file_sep|>", "<|channel|>", "<|message|>", "<|start|>", "<|constrain|>",
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What the rules of known_differences.py ask of a tokenizer."""

    kind: str
    """The model's class: BPE, WordPiece or Unigram."""
    normalizers: dict[str, dict[str, Any]]
    """By type."""
    longest_word: int | None
    """Characters of the longest word that WordPiece looks up."""
    spaces: Scheme
    space_added: bool
    """Whether llama.cpp was told to add the space in front."""
    keeps_last_space: bool
    """Whether space at the end of a text is a token."""
    by_letter_case: bool
    """Whether the splitting tells capital letters from small ones."""
    taken_for_special: tuple[str, ...]
    """Ordinary tokens that llama.cpp takes for special ones because of their name."""
    stretches: Callable[[str], list[str]]
    """The text between added tokens; the first is what comes before any."""
    swallowing_before: tuple[str, ...]
    swallowing_after: tuple[str, ...]
    """Added tokens to which the space beside them belongs."""
    flags_carried: bool
    """Whether llama.cpp is told of these flags, see stripping.py."""
    whole_words: tuple[str, ...]
    """Added tokens that count as whole words only."""
    normalized_tokens: tuple[tuple[str, str], ...]
    """Added tokens that are looked for in normalised text, where that changes them: before and after."""
    normalize: Callable[[str], str]
    is_split_off: Callable[[str], bool]
    """Whether the pre-tokenizer makes a word of this character, between two letters."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, space_added: bool) -> Facts:
        model, normalizer, splitter = tokenizer.model, tokenizer.normalizer, tokenizer.pre_tokenizer
        kind = type(model).__name__
        normalize = normalizer.normalize_str if normalizer is not None else str
        added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
        looked_for = ((text, normalize(text)) for text, token in added.items() if token.normalized)
        bare, spaced = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("a", "a "))
        return cls(
            kind=kind,
            normalizers={step["type"]: step for step in parts(state(normalizer))},
            longest_word=model.max_input_chars_per_word if kind == "WordPiece" else None,
            spaces=scheme_of(tokenizer) if kind == "BPE" else "never",
            space_added=space_added,
            keeps_last_space=bare != spaced,
            by_letter_case=any("\\p{Lu}" in part for part in signature(state(splitter))),
            taken_for_special=tuple(
                name
                for name in SPECIAL_BY_NAME
                if name not in added and tokenizer.token_to_id(name) is not None
            ),
            stretches=_splitter(added),
            swallowing_before=tuple(text for text, token in added.items() if token.lstrip),
            swallowing_after=tuple(text for text, token in added.items() if token.rstrip),
            flags_carried=bool(name_mark(tokenizer)),
            whole_words=tuple(text for text, token in added.items() if token.single_word),
            normalized_tokens=tuple(pair for pair in looked_for if pair[0] != pair[1]),
            normalize=normalize,
            is_split_off=lambda c: splitter is None or len(splitter.pre_tokenize_str(f"a{c}a")) > 1,
        )

    @property
    def strips_accents(self) -> bool:
        step = self.normalizers.get("BertNormalizer", {})
        strip = step.get("strip_accents")
        return bool(step.get("lowercase") if strip is None else strip)


def neighbours(text: str, tokens: Iterable[str]) -> list[tuple[str, str]]:
    """The characters before and after each place where one of ``tokens`` is written; "" at the ends."""
    places = (match.span() for token in tokens for match in re.finditer(re.escape(token), text))
    return [(text[start - 1 : start] if start else "", text[end : end + 1]) for start, end in places]


def _splitter(added: Iterable[str]) -> Callable[[str], list[str]]:
    longest_first = sorted(added, key=len, reverse=True)
    if not longest_first:
        return lambda text: [text]
    return re.compile("|".join(map(re.escape, longest_first))).split
