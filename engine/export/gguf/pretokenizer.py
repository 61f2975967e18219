"""Which of llama.cpp's pre-tokenizers splits text as a tokenizer.json does. Light: reads JSON only.

llama.cpp has a fixed list of named splitting rules. The regular expressions in tokenizer.json say which
names to try first; the trial in trial.py, on the probe corpus, decides.
"""

from __future__ import annotations

from typing import Any

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
)
_CASED_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

LLAMA_3 = _CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
QWEN_2 = _CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
QWEN_3_5 = QWEN_2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
TEKKEN = _CASED % ("", "") + r"|\p{N}" + _CASED_TAIL
DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
DEEPSEEK_3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
GPT_4O = _CASED % ((_CONTRACTIONS[:-1] + "?",) * 2) + r"|\p{N}{1,3}" + _CASED_TAIL
BYTE_LEVEL, DIGITS = "ByteLevel", "Digits"

# What `signature` finds -> names, the likeliest first.
BY_SIGNATURE: dict[tuple[str, ...], tuple[str, ...]] = {
    (LLAMA_3,): ("llama-bpe", "dbrx", "smaug-bpe"),
    (QWEN_2,): ("qwen2",),
    (QWEN_3_5,): ("qwen35",),
    (TEKKEN,): ("tekken",),
    (GPT_4O,): ("gpt-4o",),
    (BYTE_LEVEL,): ("gpt-2",),
    DEEPSEEK_3: ("deepseek-v3",),
    (*DEEPSEEK_CODER, DIGITS): ("deepseek-coder",),
    (DIGITS, BYTE_LEVEL): ("smollm", "starcoder"),
}

# Every other rule that byte-level tokenizers in use have; tried when the likely names do not fit.
OTHERS = (
    "llama-bpe", "dbrx", "qwen2", "gpt-2", "smollm", "tekken", "gpt-4o", "qwen35", "deepseek-llm",
    "deepseek-coder", "deepseek-v3", "falcon", "seed-coder", "bailingmoe", "superbpe",
    "exaone-moe", "viking", "bloom", "youtu", "glm4", "minicpm5", "jais-2", "tiny_aya", "laguna", "afmoe",
    "granite-embed-multi-97m", "ufakzeka", "spark2_5", "default",
)  # fmt: skip

# Of these, the rules under which a word that is itself a token is taken without merging (``ignore_merges``).
WHOLE_WORDS = frozenset({"llama-bpe", "tekken", "youtu", "glm4", "minicpm5", "granite-embed-multi-97m"})


def signature(pre_tokenizer: dict[str, Any] | None) -> tuple[str, ...]:
    """What a ``pre_tokenizer`` splits by, in order: expressions, DIGITS, BYTE_LEVEL (GPT-2's own)."""
    if pre_tokenizer is None:
        return ()
    match pre_tokenizer["type"]:
        case "Sequence":
            return tuple(s for part in pre_tokenizer["pretokenizers"] for s in signature(part))
        case "Split":
            pattern = pre_tokenizer["pattern"]
            return (pattern.get("Regex") or pattern["String"],)
        case "ByteLevel":
            return (BYTE_LEVEL,) if pre_tokenizer.get("use_regex", True) else ()
        case "Digits" if pre_tokenizer["individual_digits"]:
            return (DIGITS,)
    return (pre_tokenizer["type"],)


def is_byte_level(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether text is cut into bytes written as printable characters, GPT-2's way."""
    if pre_tokenizer is None:
        return False
    return pre_tokenizer["type"] == "ByteLevel" or any(
        is_byte_level(part) for part in pre_tokenizer.get("pretokenizers", ())
    )


def likely_names(tokenizer: dict[str, Any]) -> tuple[str, ...]:
    """The names whose rule is known to be this tokenizer's; empty when its expressions are unknown."""
    names = BY_SIGNATURE.get(signature(tokenizer["pre_tokenizer"]), ())
    if names[:1] == ("llama-bpe",) and not tokenizer["model"].get("ignore_merges"):
        # The same split, but a word that is itself a token is still built by merges.
        return (*names[1:], names[0])
    return names


def other_names(tokenizer: dict[str, Any], tried: tuple[str, ...]) -> tuple[str, ...]:
    """The remaining names, first those that treat whole words as the tokenizer does."""
    whole = bool(tokenizer["model"].get("ignore_merges"))
    return tuple(
        sorted(set(OTHERS) - set(tried), key=lambda n: ((n in WHOLE_WORDS) != whole, OTHERS.index(n)))
    )
