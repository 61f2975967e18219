"""A recipe in the making: values with their reasons, overrides on top, and what was given up on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ..data.formats import FormatName, sniff, to_example
from ..data.rows import BadRow, RawRow, RowError
from ..data.sources import iter_rows
from ..data.uses import Use, uses_of
from ..errors import WhetError
from ..plan import Plan
from ..recipe import DataSection, Recipe
from ..recipe_files import apply, build, sections_of
from .goal import ASKED, Goal

PlanOf = Callable[[Recipe], Plan]

HEAD = 200
HELD_OUT = 0.05
"""Share of the rows held out as a rule."""
PROGRESS_ROWS = 10_000


@dataclass
class Draft:
    """Values by dotted key. What the goal's overrides name is pinned: no rule changes it."""

    goal: Goal
    pinned: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    unmet: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, goal: Goal, model: str, method: str = "sft", why: str = ASKED) -> Draft:
        """The goal's own words; raises WhetError ``recipe.*`` where overrides make no recipe.

        ``method`` is what the rows are trained for, ``why`` the reason.
        """
        draft = cls(goal, flat(goal.overrides))
        draft.reasons |= dict.fromkeys(draft.pinned, ASKED)
        if method != "sft":
            draft.set("method.kind", method, why)
        draft.set("model.name", model, ASKED)
        draft.set("data.train", goal.data, ASKED)
        if goal.eval_data is not None:
            draft.set("data.eval", goal.eval_data, ASKED)
        elif "data.eval" not in draft.pinned:
            draft.set("data.eval_fraction", HELD_OUT, "until the rows are counted")
        if goal.max_memory_gib is not None:
            draft.set("training.max_memory_gib", goal.max_memory_gib, "the limit that was asked for")
        draft.recipe()
        return draft

    def set(self, key: str, value: Any, reason: str) -> bool:
        """Choose a value; False where it is pinned."""
        if key in self.pinned:
            return False
        self.values[key], self.reasons[key] = value, reason
        return True

    def unset(self, key: str) -> None:
        self.values.pop(key, None)
        self.reasons.pop(key, None)

    def free(self, patch: Mapping[str, Any]) -> bool:
        """Whether nothing in a patch is pinned."""
        return not set(patch) & set(self.pinned)

    def recipe(self, patch: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe so far, ``patch`` and then the overrides on top."""
        values: dict[str, Any] = {}
        for key, value in {**self.values, **(patch or {}), **self.pinned}.items():
            values = apply(values, key, value)
        return build(values, where="goal")


def flat(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides by dotted key; a whole section may be given as a mapping."""
    found: dict[str, Any] = {}
    for key, value in overrides.items():
        sections = sections_of(Recipe.model_fields[key].annotation) if key in Recipe.model_fields else []
        if sections and isinstance(value, Mapping):
            found |= {f"{key}.{name}": one for name, one in value.items()}
        else:
            found[key] = value
    return found


@dataclass(frozen=True)
class Look:
    """What the training sources hold before any token is counted."""

    rows: int
    head: list[RawRow]
    layout: FormatName | None
    """Of chats and texts; None for rows of another method."""
    uses: list[Use]


def look_at(section: DataSection, progress: Callable[[int], None] | None) -> Look:
    """Count the readable rows of the training sources and keep the first ones.

    Raises:
        WhetError: ``data.not_found``, ``data.suffix``, ``data.empty``, ``data.empty_folder``, ``data.hub``.
    """
    sources = [section.train] if isinstance(section.train, str) else section.train
    if not sources:
        raise WhetError(
            "data.empty", "No source of rows is named.", "Name a file, a folder, a hub id or demo."
        )
    head = list(islice((row for row in iter_rows(sources[0], section) if isinstance(row, RawRow)), HEAD))
    rows = 0
    for source in sources:
        for row in iter_rows(source, section):
            rows += not isinstance(row, BadRow)
            if progress is not None and rows % PROGRESS_ROWS == 0:
                progress(rows)
    layout = sniff(head, section.columns).format if section.format == "auto" else section.format
    return Look(rows, head, layout, uses_of(head, section.columns))


def questions(plan: Plan, head: list[RawRow], most: int, longest: int) -> list[str]:
    """The first different questions of the data, none longer than ``longest`` characters."""
    layout, section = plan.data.report.format.format, plan.data_recipe().data
    found: dict[str, None] = {}
    for row in head:
        if layout is None or len(found) == most:
            break
        try:
            example = to_example(row, layout, section)
        except RowError:
            continue
        turns = [turn for turn in example.messages or () if turn["role"] != "system"]
        asked = turns[0]["content"] if turns and turns[0]["role"] == "user" else example.prompt
        if isinstance(asked, str) and 0 < len(asked.strip()) <= longest:
            found[asked.strip()] = None
    return list(found)
