"""Word and character error rate: how much of what was said is written otherwise."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def normalized(text: str) -> str:
    """Without case and punctuation: NFKC, case folded, punctuation and symbols to spaces, spaces to one.

    Apostrophes inside words go without a space, so that "don't" stays one word. Letters keep their accents.
    """
    folded = unicodedata.normalize("NFKC", text).casefold().replace("'", "").replace("\u2019", "")
    spaced = "".join(" " if unicodedata.category(one)[0] in "PSZC" else one for one in folded)
    return " ".join(spaced.split())


def edits(said: Sequence[str], written: Sequence[str]) -> int:
    """Fewest substitutions, insertions and deletions between two sequences (Levenshtein)."""
    before = list(range(len(written) + 1))
    for row, wanted in enumerate(said, 1):
        now = [row]
        for column, given in enumerate(written, 1):
            change = before[column - 1] + (wanted != given)
            now.append(min(change, before[column] + 1, now[column - 1] + 1))
        before = now
    return before[-1]


def error_rates(said: Sequence[str], written: Sequence[str], normalize: bool) -> dict[str, float]:
    """Edits over the length of what was said, summed over all rows before dividing; above 1 where more is
    written than was said.

    Args:
        said: the right texts.
        written: the model's.
        normalize: compare :func:`normalized` texts.

    Returns:
        ``wer`` over words between spaces, ``cer`` over characters, spaces included.
    """
    pairs = [
        (normalized(one), normalized(other)) if normalize else (one.strip(), other.strip())
        for one, other in zip(said, written, strict=True)
    ]
    words = sum(edits(one.split(), other.split()) for one, other in pairs)
    characters = sum(edits(one, other) for one, other in pairs)
    return {
        "wer": words / max(1, sum(len(one.split()) for one, _ in pairs)),
        "cer": characters / max(1, sum(len(one) for one, _ in pairs)),
    }
