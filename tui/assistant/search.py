"""Full-text search over the passages: SQLite's FTS5 with BM25, in memory, built at the first question."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from difflib import get_close_matches

from .passages import Passage, passages

TITLE_WEIGHT, WORDS_WEIGHT, TEXT_WEIGHT = 6.0, 3.0, 1.0

WIDE = 3
"""Times as many passages are looked at as are given."""
WHY = re.compile(r"\s*why\b", re.IGNORECASE)
# Words people use for what the passages call otherwise.
SYNONYMS = {
    "oom": "memory", "vram": "memory", "ram": "memory", "lr": "learning_rate", "quantize": "quantise",
    "quantization": "quantise", "4bit": "nf4", "4-bit": "nf4", "qlora": "nf4", "crash": "failed",
    "crashed": "failed", "hang": "stalled", "ollama": "Modelfile", "eos": "end", "faster": "slow",
    "speed": "slow", "overfit": "overfits", "colour": "theme", "color": "theme", "shortcut": "keys",
    "hotkey": "keys", "dataset": "data", "prompt": "template", "resume": "resumed", "ssh": "connection",
}  # fmt: skip
STOP = frozenset(
    re.findall(
        r"\w+",
        "a an and are can could do does for from get has have how i if in is it its make many me my need not "
        "of on or should so that the there this to use was what when where which why will with would you",
    )
)


class Index:
    """Built once; :meth:`ask` may be called from any thread that made it."""

    def __init__(self, entries: Iterable[Passage] | None = None) -> None:
        self._entries = list(passages() if entries is None else entries)
        self._base = sqlite3.connect(":memory:", check_same_thread=False)
        self._base.execute(
            "CREATE VIRTUAL TABLE passages USING fts5(title, target, text, tokenize='porter unicode61')"
        )
        rows = [(one.title, re.sub(r"[._]", " ", one.target), one.text) for one in self._entries]
        self._base.executemany("INSERT INTO passages VALUES (?, ?, ?)", rows)
        words = self._base.execute("SELECT title || ' ' || target || ' ' || text FROM passages")
        self._words = sorted(
            {word for (text,) in words for word in re.findall(r"[a-z][a-z_]{3,}", text.lower())}
        )

    def ask(self, question: str, most: int = 6) -> list[Passage]:
        """The passages that answer best, best first; none where no word is known.

        A word that stands nowhere is read as the nearest one that does (``tempalte``). Who asks why is
        answered by findings first.
        """
        exact = [one for one in self._entries if one.target.lower() == question.strip().lower()]
        wanted = self._wanted(question)
        if not wanted:
            return exact[:most]
        match = " OR ".join(f'"{word}"*' if len(word) > 3 else f'"{word}"' for word in wanted)
        found = self._base.execute(
            "SELECT rowid FROM passages WHERE passages MATCH ? ORDER BY bm25(passages, ?, ?, ?) LIMIT ?",
            (match, TITLE_WEIGHT, WORDS_WEIGHT, TEXT_WEIGHT, WIDE * most),
        )
        ranked = [self._entries[rowid - 1] for (rowid,) in found]
        if WHY.match(question):  # who asks why wants what was found, not what can be set
            ranked.sort(key=lambda one: one.kind != "finding")
        return list(dict.fromkeys([*exact, *ranked]))[:most]

    def _wanted(self, question: str) -> list[str]:
        wanted = []
        for word in re.findall(r"[\w-]+", question.lower()):
            if word in STOP:
                continue
            parts = re.split(r"[_-]", SYNONYMS.get(word, word).lower())
            wanted += [part for part in (*parts, word if word.isalnum() else "") if part]
        return list(dict.fromkeys(self._known(word) for word in wanted))

    def _known(self, word: str) -> str:
        if len(word) < 5 or any(known.startswith(word[:-1]) for known in self._words):
            return word
        return next(iter(get_close_matches(word, self._words, n=1, cutoff=0.8)), word)
