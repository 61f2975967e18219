"""Mutations: from something valid and a seeded generator to something that is nearly so."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 255, 256, 2**15, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63)),
    *(2**64, 10**20, 10**400, 0.5, -0.0, 1e-320, 1e308, 1e309, -1e309, float("nan")),
)
CHARACTERS = ("\0", "\x1b[31m", "\x1b]0;title\x07", "\x7f", "\x9b", "\ud800", "\udfff\ud800", "\u202eabc")
LETTERS = (
    "\ufeff",
    "\ufdd0",
    "\ufdd1",
    "\uffff",
    "e\u0301",
    "\U0001f468\u200d\U0001f469",
    "ß",
    "İ",
    "\u2066",
)
WORDS = (
    *("", " ", "\n", "\t", "null", "true", "on", "1e5", "0x10", "NaN", "-Infinity", "None", "last", "demo"),
    *("{{ 7 * 7 }}", "{% for x in y %}", "%s%n", "=cmd|' /C calc'!A0", "-", "--", "- - - -", "&a *a"),
    *("!!python/object/apply:os.system [id]", "a=b=c", ".", "..", "a.b.c", "default", "\r", "'", '"', "\\"),
    *("<<: *x", "{", "]", "\u2028", "\u2066", "main"),
)
PATHS = (
    "../../etc/passwd",
    "/etc/passwd",
    "~root",
    "~nobodyhere",
    "file:///etc/passwd",
    "C:\\x",
    "/proc/self/mem",
)
MARKERS = ("<|im_start|>", "<|turn_end|>", "[/INST]", "<tool_call>", "</think>", "<s>", "<|image|>")
LONG = ("a" * 10_000, "\u00e9" * 5000, "[" * 2000, '{"a":' * 2000, "a\n" * 3000)
TEXTS = (*CHARACTERS, *LETTERS, *WORDS, *PATHS, *MARKERS, *LONG)
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": None}, [1, "a"], {"a": {"b": []}})
SINGLE = (0, 10, 27, 34, 58, 123, 0x7F, 0x2028, 0xD800, 0x10FFFF)
WIDE = (0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
DEPTHS = (3, 50, 400)


def odd_value(rng: Random) -> Any:
    """A value of any kind that nobody expects."""
    kind = rng.randrange(4)
    if kind == 3:
        return nested(rng.choice(DEPTHS), rng.random() < 0.5)
    return copy.deepcopy(rng.choice((NUMBERS, TEXTS, OTHERS)[kind]))


def nested(depth: int, lists: bool) -> Any:
    """Lists in lists, or objects in objects."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if lists else {"a": value}
    return value


def value(rng: Random, tree: Any, most: int = 3) -> Any:
    """A copy of a JSON-like tree with up to ``most`` of its places changed, moved, doubled or dropped."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, most)):
        places = list(_places(tree))
        if not places:
            return odd_value(rng)
        _change(rng, *rng.choice(places))
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a tree."""
    keys: list[Any] = []
    if isinstance(tree, dict):
        keys = list(tree)
    elif isinstance(tree, list):
        keys = list(range(len(tree)))
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def _change(rng: Random, holder: Any, key: Any) -> None:
    old = holder[key]
    what = rng.randrange(7)
    if what == 0:
        holder.pop(key)
    elif what == 1 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(old))
    elif what == 1:
        holder[text(rng, str(key))] = holder.pop(key)
    elif what == 2 and isinstance(old, str):
        holder[key] = text(rng, old)
    elif what == 3 and isinstance(old, int | float):
        holder[key] = rng.choice((-old, old + 1, old * 1000, str(old), [old]))
    elif what == 4:
        holder[key] = [old]
    elif what == 5:
        holder[key] = {"a": old} if isinstance(old, str) else json.dumps(old)
    else:
        holder[key] = odd_value(rng)


def text(rng: Random, old: str, most: int = 2) -> str:
    """A text with pieces cut out, doubled, replaced, or odd ones put in."""
    for _ in range(rng.randint(1, most)):
        a, b = sorted((rng.randint(0, len(old)), rng.randint(0, len(old))))
        near = min(b, a + rng.choice((1, 3, 30, 1000)))
        what = rng.randrange(7)
        if what == 0:
            old = old[:a] + old[near:]
        elif what == 1:
            old = old[:near] + old[a:near] + old[near:]
        elif what == 2:
            old = old[:a]
        elif what == 3:
            old = old[:a] + chr(rng.choice(SINGLE)) + old[a + 1 :]
        elif what == 4:
            old = old[:a] + str(rng.choice(NUMBERS)) + old[near:]
        else:
            old = old[:a] + rng.choice(TEXTS) + old[a:]
    return old[:200_000]


def data(rng: Random, old: bytes, most: int = 3) -> bytes:
    """Bytes with bits flipped, cut, doubled, overwritten or spliced."""
    new = bytearray(old)
    for _ in range(rng.randint(1, most)):
        # what says how the rest is to be read stands at the beginning, or at the end
        end = rng.choice((len(new), len(new), min(len(new), 64), min(len(new), 1000)))
        a, b = sorted((rng.randint(0, end), rng.randint(0, len(new))))
        if rng.random() < 0.1:
            a = max(0, len(new) - rng.randint(0, 64))
        what = rng.randrange(8)
        if what == 0 and new:
            new[a % len(new)] ^= 1 << rng.randrange(8)
        elif what == 1:
            del new[a:]
        elif what == 2:
            new[b:b] = new[a:b][:50_000]
        elif what == 3:
            del new[a : min(b, a + rng.choice((1, 4, 8, 1000)))]
        elif what == 4:
            new[a : a + 8] = rng.choice(WIDE).to_bytes(8, "little")
        elif what == 5:
            new[a : a + 4] = (rng.choice(WIDE) & 0xFFFFFFFF).to_bytes(4, "little")
        elif what == 6:
            new[a:a] = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
        else:
            new[a : a + 16] = rng.randbytes(rng.randint(0, 16))
    return bytes(new)
