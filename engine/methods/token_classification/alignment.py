"""Which token carries which word's tag.

The words are joined by spaces and tokenised as that text, as whoever uses the model later tokenises one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

IGNORED = -100


def joined(words: Sequence[str]) -> tuple[str, list[int]]:
    """The text, and where in it each word begins."""
    starts, place = [], 0
    for word in words:
        starts.append(place)
        place += len(word) + 1
    return " ".join(words), starts


def aligned(offsets: Sequence[tuple[int, int]], starts: Sequence[int], tags: Sequence[int]) -> list[int]:
    """The tag of each token that is its word's first; IGNORED for all others.

    Args:
        offsets: where each token begins and ends in the text, in characters; equal for special tokens. A
            token that ends in a word is of that word, since some tokenizers count the space in front.
        starts: of the words.
        tags: one a word.
    """
    found, last = [], -1
    for begin, end in offsets:
        word = bisect_right(starts, end - 1) - 1 if end > begin else last
        found.append(tags[word] if word > last else IGNORED)
        last = max(last, word)
    return found
