"""Rows of data as results show them: texts cut, what is learnt marked with its place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from whet.engine import api

LONGEST_ROW = 400
LONGEST_RUN = 300
"""Characters of a run of text that are shown: both of its ends, since borders are what matters."""
SPECIAL = "⟦", "⟧"


def samples(rows: Sequence[api.RowText]) -> list[dict[str, str]]:
    """Rows as JSON, cut."""
    found = []
    for row in rows:
        entry = {"at": f"{row.file}:{row.line}", "row": _beginning(row.text)}
        found.append({**entry, "problem": row.problem} if row.problem else entry)
    return found


def _beginning(text: str) -> str:
    left = len(text) - LONGEST_ROW
    return text if left <= 0 else f"{text[:LONGEST_ROW]}… [{left} more characters]"


def preview(row: api.TemplatePreview) -> dict[str, Any]:
    """A rendered row in runs: ``at`` are offsets in its text, which the runs' texts make up without marks."""
    if row.problem:
        return {"row": f"{row.file}:{row.line}", "problem": row.problem}
    runs, start = [], 0
    for learnt, group in groupby(row.tokens, lambda token: token.supervised):
        tokens = list(group)
        end = start + sum(len(token.text) for token in tokens)
        runs.append({"at": [start, end], "learnt": learnt, "text": _marked(tokens)})
        start = end
    return {
        "row": f"{row.file}:{row.line}",
        "tokens": len(row.tokens),
        "learnt_tokens": sum(token.supervised for token in row.tokens),
        "cut": row.truncated,
        "runs": runs,
    }


def _marked(tokens: Sequence[Any]) -> str:
    pieces = (f"{SPECIAL[0]}{one.text}{SPECIAL[1]}" if one.special else one.text for one in tokens)
    text = "".join(pieces)
    half = LONGEST_RUN // 2
    left = len(text) - 2 * half
    return text if left <= 0 else f"{text[:half]}… [{left} more characters] …{text[-half:]}"


def comparison(one: api.Comparison) -> dict[str, Any]:
    """Whether a GGUF, a Modelfile or the model's own template asks as training does."""
    found: dict[str, Any] = {
        "with": one.with_what,
        "same": f"{one.same} of {one.conversations}",
        "notes": one.notes,
    }
    if one.first is not None:
        found |= {
            "first_difference_at_token": one.first.at,
            "trained": one.first.trained,
            "there": one.first.other,
        }
    return found


def summary(view: api.TemplateView) -> str:
    """Whose format template and data are, in whet's own words."""
    usable = [row for row in view.rows if not row.problem]
    family = view.facts.family if view.facts else None
    parts = [
        view.note
        if view.note
        else "The rows are plain text, without a template."
        if view.template is None
        else f"The template in force writes the format of {family}."
        if family
        else "The template in force is like none that is known.",
        f"The model is of family {view.family}.",
    ]
    if view.data_family:
        parts.append(f"The rows hold markers of {view.data_family} as text.")
    if usable:
        learnt = sum(token.supervised for row in usable for token in row.tokens)
        parts.append(f"{learnt} of {sum(len(row.tokens) for row in usable)} tokens shown are learnt.")
    differing = sum(one.same < one.conversations for one in view.comparisons)
    if view.comparisons:
        parts.append(f"{differing} of {len(view.comparisons)} comparisons differ.")
    return " ".join(parts)
