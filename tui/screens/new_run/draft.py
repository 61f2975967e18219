"""The recipe in the making, as text: every edit keeps what was typed, has a reason, and can be undone."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from whet.engine import api

from ... import drafts
from .fields import Field

Priority = Literal["quality", "speed", "memory"]
BY_YOU = "set by you"
MOST_UNDONE = 100


@dataclass(frozen=True)
class Wrong:
    """What was typed into a field and makes no recipe, kept until it does."""

    words: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Before:
    """The draft before an edit."""

    what: str
    text: str
    reasons: dict[str, str]
    edited: dict[str, Any]
    goal: api.Goal | None


@dataclass
class Draft:
    """What a person wants so far. Empty until data is named; a proposal, a file or an editor fills it."""

    text: str = ""
    reasons: dict[str, str] = field(default_factory=dict)
    """Setting -> why it has its value, where that is known."""
    edited: dict[str, Any] = field(default_factory=dict)
    """Settings changed by hand since the proposal; the next proposal keeps them."""
    wrong: dict[str, Wrong] = field(default_factory=dict)
    data: str | None = None
    model: str | None = None
    """Named by the person; None: whet chooses."""
    method: str | None = None
    """What the rows are trained for, named by the person; None: what they look made for."""
    priority: Priority = "quality"
    max_minutes: float | None = None
    max_memory_gib: float | None = None
    name: str | None = None
    """Of the draft's file, once it is kept."""
    own_text: bool = False
    """The text came from a file or an editor: only asking for a goal replaces it whole."""
    rejected: str | None = None
    """A text from the editor that is no recipe; the editor opens it again."""
    history: list[Before] = field(default_factory=list)
    goal_met: api.Goal | None = None
    """Of the proposal that the text came from."""
    kept_text: str = ""
    """The text as it was last kept, proposed or read."""

    @classmethod
    def of(cls, source: object) -> Draft:
        """From a recipe's path, its name among the shipped ones, its text, or ``{"data": ...}``.

        Raises WhetError ``recipe.*``.
        """
        draft = cls()
        if isinstance(source, Mapping):
            draft.data, draft.model = source.get("data"), source.get("model")
        elif isinstance(source, str) and "\n" in source:
            draft.read(source, "opened")
        elif isinstance(source, str | Path):
            path = Path(source)
            recipe = api.recipe(path)
            draft.read(path.read_text(encoding="utf-8") if path.is_file() else api.to_yaml(recipe), "opened")
            if path.parent == drafts.folder():
                draft.name = path.stem
        draft.history.clear()
        return draft

    # --- what it is

    @property
    def recipe(self) -> api.Recipe | None:
        """The text as a recipe; None before there is one."""
        return api.recipe_from_text(self.text) if self.text else None

    def goal(self) -> api.Goal:
        """What the proposal is asked for. There must be data."""
        assert self.data is not None
        return api.Goal(
            data=self.data,
            model=self.model,
            method=self.method or "auto",
            priority=self.priority,
            max_minutes=self.max_minutes,
            max_memory_gib=self.max_memory_gib,
            overrides=self.edited,
        )

    @property
    def changed(self) -> bool:
        """Whether there is something that leaving would lose."""
        return bool(self.text) and self.text != self.kept_text

    # --- filling it

    def take(self, proposal: api.Proposal) -> None:
        """A proposal's recipe, each value under its reason."""
        self._remember("another proposal")
        self.text, self.reasons = proposal.to_yaml(), dict(proposal.reasons)
        self.reasons |= dict.fromkeys(self.edited, BY_YOU)
        self.wrong.clear()
        self.own_text, self.rejected, self.kept_text = False, None, self.text
        self.goal_met = proposal.goal

    def read(self, text: str, what: str = "edited") -> None:
        """A whole text, from a file or an editor. Raises WhetError ``recipe.*`` and keeps the text aside."""
        try:
            recipe = api.recipe_from_text(text)
        except api.WhetError:
            self.rejected = text
            raise
        before = _flat(self.recipe)
        after = _flat(recipe)
        self._remember(what)
        self.text, self.own_text, self.rejected, self.goal_met = text, True, None, None
        if before:
            self.edited = {key: value for key, value in after.items() if value != before[key]}
        same = {key: reason for key, reason in self.reasons.items() if before.get(key) == after.get(key)}
        self.reasons = same | dict.fromkeys(self.edited, BY_YOU)
        self.wrong.clear()
        self._data_of_text()
        self.model = recipe.model.name
        if what == "opened":
            self.kept_text = text

    def choose_data(self, source: str) -> None:
        """Other rows: what was set for the ones before them goes."""
        if source != self.data:
            self.edited = {
                key: value
                for key, value in self.edited.items()
                if key != "accept" and not key.startswith("data.")
            }
        path = Path(source).expanduser()
        self.data = str(path.absolute()) if source != "demo" and path.exists() else source

    def _data_of_text(self) -> None:
        recipe = self.recipe
        if recipe is not None:
            train = recipe.data.train
            self.data = train if isinstance(train, str) else train[0]

    def type_in(self, one: Field, words: str) -> bool:
        """Set a field to what was typed; False where that makes no recipe, which ``wrong`` then tells.

        Fields that were wrong before are tried again with it: two settings may only fit together.
        """
        value = one.value_of(words)
        together = {key: wrong.value for key, wrong in self.wrong.items()} | {one.key: value}
        for patch in (together, {one.key: value}):
            try:
                self.put(patch)
            except api.WhetError as error:
                reason = error.message.split(": ", 1)[-1]
            else:
                for key in patch:
                    self.wrong.pop(key, None)
                return True
        self.wrong[one.key] = Wrong(words, value, reason)
        return False

    def put(self, patch: Mapping[str, Any], reason: str = BY_YOU, *, by_hand: bool = True) -> None:
        """Change settings, all or none. Raises WhetError ``recipe.*``."""
        text = self.text
        for key, value in patch.items():
            text = api.set_key(_without_reason(text, key, self.reasons.get(key, "")), key, value)
        api.recipe_from_text(text)
        self._remember(", ".join(patch))
        self.text = text
        self.reasons |= dict.fromkeys(patch, reason)
        if by_hand:
            self.edited |= patch

    def fix(self, finding: api.Finding) -> str:
        """Apply one finding's patch; returns the diff. Raises WhetError ``recipe.*``."""
        assert finding.fix is not None
        new = api.patch_text(self.text, [finding], [finding.id])
        self._remember(finding.id)
        self.text = new.text
        self.reasons |= dict.fromkeys(finding.fix.patch, f"fix of {finding.id}")
        recipe = api.recipe_from_text(new.text).model_dump(mode="json")
        self.edited |= {key: _at(recipe, key) for key in finding.fix.patch}
        return new.diff

    def undo(self) -> str | None:
        """Take the last edit back; returns what it was, None when there is none."""
        if not self.history:
            return None
        before = self.history.pop()
        self.text, self.reasons, self.edited = before.text, before.reasons, before.edited
        self.goal_met, self.own_text = before.goal, before.goal is None
        if before.goal is not None:
            for name in ("model", "priority", "max_minutes", "max_memory_gib"):
                setattr(self, name, getattr(before.goal, name))
            self.method = None if before.goal.method == "auto" else before.goal.method
        self._data_of_text()
        self.wrong.clear()
        return before.what

    def _remember(self, what: str) -> None:
        if self.text:
            self.history.append(Before(what, self.text, dict(self.reasons), dict(self.edited), self.goal_met))
            del self.history[:-MOST_UNDONE]

    # --- keeping it

    def keep(self) -> str:
        """Write it among the drafts; returns its name there."""
        assert self.text
        if self.name is None:
            self.name = free_name(self.suggested_name(), drafts.names())
        drafts.save(self.name, self.text)
        self.kept_text = self.text
        return self.name

    def suggested_name(self) -> str:
        """The recipe's own name, else that of its data."""
        recipe = self.recipe
        if recipe is not None and recipe.name:
            return recipe.name
        stem = Path(self.data or "recipe").stem
        return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "recipe"


def free_name(wanted: str, taken: list[str]) -> str:
    """``wanted``, or with the first number that is free."""
    if wanted not in taken:
        return wanted
    number = 2
    while f"{wanted}-{number}" in taken:
        number += 1
    return f"{wanted}-{number}"


def _flat(recipe: api.Recipe | None) -> dict[str, Any]:
    """Every setting's value by its dotted key."""
    found: dict[str, Any] = {}
    for name, value in (recipe.model_dump(mode="json") if recipe is not None else {}).items():
        section = isinstance(value, dict)
        found |= {f"{name}.{key}": one for key, one in value.items()} if section else {name: value}
    return found


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def _without_reason(text: str, key: str, reason: str) -> str:
    """The text without the comment above ``key`` that gave the reason of the value it had."""
    place = _line_of(text, key)
    if place is None or not reason:
        return text
    lines = text.split("\n")
    first = place
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    said = " ".join(line.strip().removeprefix("#").strip() for line in lines[first:place])
    if " ".join(textwrap.wrap(reason, 10_000)) != said:
        return text
    return "\n".join([*lines[:first], *lines[place:]])


def _line_of(text: str, key: str) -> int | None:
    """Number from 0 of the line in which a key of the text, ``name`` or ``section.name``, begins."""
    section, _, name = key.rpartition(".")
    inside = ""
    for number, line in enumerate(text.split("\n")):
        found = re.match(r"( *)([A-Za-z_0-9]+):", line)
        if found is None:
            continue
        if not found[1]:
            inside = found[2]
        if found[2] == name and (inside == section if found[1] else not section):
            return number
    return None
