"""Findings' patches on a copy of a recipe: what changes, what contradicts, what is left. Light.

Nothing is executed: a fix that is a command or a sentence stays for a person.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from .checks.registry import worst_first
from .errors import WhetError
from .findings import Finding
from .plan import Plan, make_plan
from .recipe_files import SHIPPED, find_recipe, load_recipe, recipe_from_text, to_yaml
from .run_view import RunView
from .runs.files import write_atomic
from .yaml_edit import set_key

ACCEPT = "accept"
"""A patch of this key alone silences a finding; it is applied only when it is asked for by id."""

ADDED = (ACCEPT, "data.drop", "model.end_tokens")
"""Lists to which each finding adds its own."""


class Conflict(BaseModel):
    """A patch that was left out, since an earlier one sets the same key otherwise."""

    model_config = ConfigDict(frozen=True)

    finding: Finding
    key: str
    wanted: Any
    kept: Any = Field(description="The value that an applied patch gives the key.")
    by: str = Field(description="Id of the finding whose patch that is.")


class Proposal(BaseModel):
    """A recipe with patches applied, before it is planned again."""

    model_config = ConfigDict(frozen=True)

    text: str = Field(description="The new recipe as YAML, comments kept.")
    diff: str = Field(description="Unified diff from the old text; empty when nothing changed.")
    applied: list[Finding]
    conflicts: list[Conflict]
    by_hand: list[Finding] = Field(description="Chosen findings whose fix is no patch.")
    notes: list[Finding] = Field(description="Notes with a patch, which are applied only by id.")


class Fixed(BaseModel):
    """A proposal, and what the plan of it says."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="Of the recipe or run.")
    source: Path | None = Field(description="The person's own recipe file; None for a run or a shipped one.")
    proposal: Proposal
    plan: Plan

    @property
    def left(self) -> list[Finding]:
        """What the new plan finds; what only a run can show is not among it."""
        return self.plan.findings


def propose(
    text: str, findings: Sequence[Finding], ids: Sequence[str] = (), name: str = "recipe"
) -> Proposal:
    """Apply the patches of ``findings`` to a recipe's text.

    Args:
        text: the recipe as YAML.
        findings: about it, worst first; of two patches of the same key the first counts.
        ids: only these, notes and ``accept`` patches included; by default the patches of all errors and
            warnings.
        name: of the recipe, in the diff.

    Raises:
        WhetError: ``fix.unknown_id`` when nothing was found under an id; ``recipe.invalid`` when the patches
            together make no recipe.
    """
    owners: dict[str, tuple[str, Any]] = {}
    applied, conflicts, by_hand, new = [], [], [], text
    for finding in _chosen(findings, ids):
        patch = finding.fix.patch if finding.fix else {}
        if not patch or (not ids and set(patch) == {ACCEPT}):
            by_hand.append(finding)
            continue
        clash = next(
            (key for key in patch if key not in ADDED and key in owners and owners[key][1] != patch[key]),
            None,
        )
        if clash is not None:
            by, kept = owners[clash]
            conflicts.append(Conflict(finding=finding, key=clash, wanted=patch[clash], kept=kept, by=by))
            continue
        for key, value in patch.items():
            if key in ADDED:  # one more entry must not take back another finding's
                more, there = value if isinstance(value, list) else [value], _at(_values(new), key)
                new = set_key(new, key, [*there, *(entry for entry in more if entry not in there)])
            else:
                new, owners[key] = set_key(new, key, value), (finding.id, value)
        applied.append(finding)
    recipe_from_text(new)
    same = _values(new) == _values(text)
    return Proposal(
        text=text if same else new,
        diff="" if same else _diff(text, new, name),
        applied=applied,
        conflicts=conflicts,
        by_hand=by_hand,
        notes=[] if ids else [f for f in findings if f.severity == "note" and f.fix and f.fix.patch],
    )


def _values(text: str) -> dict[str, Any]:
    return yaml.safe_load(text) or {}


def _at(values: dict[str, Any], key: str) -> list[Any]:
    """The list under a dotted key; empty where there is none."""
    section, _, name = key.rpartition(".")
    return ((values.get(section) or {}) if section else values).get(name) or []


def _chosen(findings: Sequence[Finding], ids: Sequence[str]) -> list[Finding]:
    if not ids:
        return [finding for finding in findings if finding.severity != "note"]
    wanted = {id.upper() for id in ids}
    if unknown := sorted(wanted - {finding.id for finding in findings}):
        found = ", ".join(dict.fromkeys(finding.id for finding in findings)) or "none"
        raise WhetError(
            "fix.unknown_id",
            f"Nothing was found under {', '.join(unknown)}. Findings here: {found}.",
            "`whet explain ID` says what an id means.",
        )
    return [finding for finding in findings if finding.id in wanted]


def _diff(before: str, after: str, name: str) -> str:
    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), name, f"{name} (fixed)")
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def fix_recipe(
    source: str | Path, ids: Sequence[str] = (), progress: Callable[[int], None] | None = None
) -> Fixed:
    """Plan a recipe file (or a shipped recipe by name), patch a copy, plan that.

    Raises:
        WhetError: of reading and planning a recipe, and of :func:`propose`.
    """
    path = find_recipe(source)
    findings = make_plan(load_recipe(path), progress=progress).findings
    proposal = propose(path.read_text(encoding="utf-8"), findings, ids, path.name)
    own = path if path.parent != SHIPPED else None
    return Fixed(name=path.name, source=own, proposal=proposal, plan=_plan(proposal, progress))


def fix_run(view: RunView, ids: Sequence[str] = (), progress: Callable[[int], None] | None = None) -> Fixed:
    """The same from what was found about a run, before its start and since."""
    if view.plan is None:
        raise WhetError("run.no_plan", f"Run {view.id} has no recipe to fix: it trains nothing.")
    proposal = propose(to_yaml(view.plan.recipe), worst_first(view.findings), ids, f"{view.id}.yaml")
    return Fixed(name=view.id, source=None, proposal=proposal, plan=_plan(proposal, progress))


def _plan(proposal: Proposal, progress: Callable[[int], None] | None) -> Plan:
    return make_plan(recipe_from_text(proposal.text), progress=progress)


def write_fixed(text: str, out: Path, *, overwrite: bool = False) -> Path:
    """Write a recipe's text. Raises WhetError ``recipe.exists``, ``recipe.not_writable``."""
    if out.exists() and not overwrite:
        raise WhetError("recipe.exists", f"{out} exists.", "Name another file, or use --in-place on it.")
    try:
        write_atomic(out, text.encode())
    except OSError as error:
        raise WhetError(
            "recipe.not_writable", f"Cannot write {out}: {error.strerror}.", "Name another place with -o."
        ) from error
    return out
