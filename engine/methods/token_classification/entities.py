"""Entities in tags, and how many of them were found: begin, kind and end must all be right.

Tags are O, or a mark and a kind: B-PER begins an entity, I-PER goes on with it, E-PER ends it, S-PER is a
whole one. An I that follows no entity of its kind begins one, as the scorer of CoNLL-2000 has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Entity = tuple[int, int, str]
"""First word, the word after the last, kind."""
OUTSIDE = "O"
BEGINS, GOES_ON, ENDS = ("B", "S"), ("I", "E"), ("E", "S")


def marks_entities(names: Iterable[str]) -> bool:
    """Whether a run's tags are of that shape, with at least one kind."""
    others = [name for name in names if name != OUTSIDE]
    return bool(others) and all(
        name.partition("-")[0] in (*BEGINS, *GOES_ON) and name.partition("-")[2] for name in others
    )


def entities(tags: Sequence[str]) -> set[Entity]:
    """Of one text."""
    found: set[Entity] = set()
    start, kind, over = 0, "", True
    for place, tag in enumerate([*tags, OUTSIDE]):
        mark, _, this = tag.partition("-")
        goes_on = mark in GOES_ON and not over and this == kind
        if not over and not goes_on:
            found.add((start, place, kind))
            over = True
        if mark != OUTSIDE and not goes_on:
            start, kind, over = place, this, False
        if mark in ENDS:
            found.add((start, place + 1, kind))
            over = True
    return found


def entity_scores(given: Iterable[Sequence[str]], right: Iterable[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 over the entities of all texts together; 0 where there are none."""
    hits = found = there = 0
    for one, other in zip(given, right, strict=True):
        predicted, wanted = entities(one), entities(other)
        hits += len(predicted & wanted)
        found += len(predicted)
        there += len(wanted)
    return {
        "precision": hits / found if found else 0.0,
        "recall": hits / there if there else 0.0,
        "f1": 2 * hits / (found + there) if found + there else 0.0,
    }
