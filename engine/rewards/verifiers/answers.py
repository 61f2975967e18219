"""Where a completion's answer stands, and whether it is the right text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

THINKS, THOUGHT = "<think>", "</think>"
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
BOXED = re.compile(r"\\boxed\s*\{")
MARKED = "####"
FINAL = " \t\r\n.,;:!?。！？"
QUOTES = "\"'`“”‘’*"


def text_of(completion: Any) -> str:
    """A completion as text: itself, or the words of the messages that a chat row was answered with."""
    if isinstance(completion, str):
        return completion
    return "\n".join(_content(message.get("content")) for message in completion)


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else ()
    return "".join(str(part.get("text") or "") for part in parts if isinstance(part, Mapping))


def said_in(text: str) -> str:
    """What a text says after thinking; thoughts that never end leave nothing after them."""
    return text.rpartition(THOUGHT)[2].partition(THINKS)[0]


def answer_in(text: str, extract: str | None = None) -> str | None:
    """The answer of a text.

    With ``extract`` it is the first group (or the whole) of its last match, None without one. Otherwise
    thoughts do not count (:func:`said_in`), and the answer is the last ``<answer>``, the last ``\\boxed{}``
    or what follows the last ``####`` up to the line's end, in this order; else the whole text.
    """
    if extract is not None:
        matches = list(re.finditer(extract, text, re.DOTALL))
        return (matches[-1][1] if matches[-1].re.groups else matches[-1][0]) if matches else None
    said = said_in(text)
    tagged = TAGGED.findall(said)
    if tagged:
        said = tagged[-1]
    boxed = _boxed(said)
    if boxed is not None:
        return boxed
    if not tagged and MARKED in said:
        return said.rpartition(MARKED)[2].strip().partition("\n")[0]
    return said


def _boxed(text: str) -> str | None:
    """What the last ``\\boxed{...}`` holds, with braces inside of it; None without a closed one."""
    for opening in reversed(list(BOXED.finditer(text))):
        depth = 1
        for place in range(opening.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[opening.end() : place]
    return None


def normalised(text: str) -> str:
    """Without case, width forms, runs of spaces, quotes around it, and punctuation at its end."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.strip(QUOTES).rstrip(FINAL).strip(QUOTES + " ")


def right_answers(value: Any) -> list[str]:
    """A column's answer as the texts of which any is right. Raises ValueError for other values."""
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(one, dict | list) or one is None for one in values):
        raise ValueError("neither a text, a number, nor a list of them")
    texts = [str(one) for one in values]
    return [answer_in(text) or text for text in texts]


def exact_answer(text: str, answer: Any, *, extract: str | None = None, strict: bool = False) -> float:
    """1 if the text's answer is one of ``answer``, else 0.

    Raises ValueError where ``answer`` is neither a text, a number nor a list of them.
    """
    right = right_answers(answer)
    given = answer_in(text, extract)
    if given is None:
        return 0.0
    if strict:
        return float(given.strip() in [one.strip() for one in right])
    given = normalised(given)
    return float(bool(given) and given in map(normalised, right))
