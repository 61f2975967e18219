"""A fault: a set-up that is really broken, the one finding it must raise, and the fix that must end it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.engine.findings import Finding
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.recipe_files import patched


@dataclass(frozen=True)
class Looked:
    """What whet found in a set-up.

    Args:
        findings: all of them, notes included.
        mend: does what a finding's fix says (applies the patch, runs the command or follows the sentence, by
            hand where it asks for that) and looks again.
    """

    findings: list[Finding]
    mend: Callable[[Finding], Looked] | None = None


@dataclass(frozen=True)
class Fault:
    """One broken set-up.

    Args:
        id: of the finding that must be raised, and no other warning or error with it.
        name: what is broken, in a few words; tests are named by it.
        look: builds the set-up in an empty folder and lets whet look at it.
        fix: what the finding's fix must be: its patch, or words of its command or text.
        severity: at least this.
    """

    id: str
    name: str
    look: Callable[[Path], Looked]
    fix: dict[str, Any] | str
    severity: str = "warning"


@dataclass(frozen=True)
class Healthy:
    """A set-up without fault: no warning, no error."""

    name: str
    look: Callable[[Path], Looked]


@dataclass(frozen=True)
class Outcome:
    """How a set-up fared."""

    caught: bool
    raised: tuple[str, ...]
    """Ids of the warnings and errors."""
    why: str = ""
    """What was wrong, where it was."""


def serious(findings: Iterable[Finding]) -> list[Finding]:
    """Warnings and errors."""
    return [finding for finding in findings if finding.severity != "note"]


def try_fault(fault: Fault, folder: Path) -> Outcome:
    """Build, look, compare the finding and its fix, mend, look again."""
    looked = fault.look(folder)
    wanted = [
        f for f in looked.findings if f.id == fault.id and (f.severity != "note" or fault.severity == "note")
    ]
    raised = tuple(sorted({finding.id for finding in serious(looked.findings)}))
    if not wanted:
        return Outcome(False, raised, f"{fault.id} was not raised")
    if set(raised) - {fault.id}:
        return Outcome(False, raised, f"raised beside it: {', '.join(sorted(set(raised) - {fault.id}))}")
    finding = wanted[0]
    if fault.severity == "error" and finding.severity != "error":
        return Outcome(False, raised, f"a {finding.severity}, not an error")
    if wrong := _wrong_fix(finding, fault.fix):
        return Outcome(False, raised, wrong)
    if looked.mend is None:
        return Outcome(False, raised, "nobody tried the fix")
    still = [
        f.id for f in looked.mend(finding).findings if f.id == fault.id and f.severity == finding.severity
    ]
    return Outcome(not still, raised, "the fix did not end it" if still else "")


def _wrong_fix(finding: Finding, wanted: dict[str, Any] | str) -> str:
    if finding.fix is None:
        return "no fix"
    if isinstance(wanted, dict):
        patch = finding.fix.patch
        return "" if wanted == patch else f"the fix patches {patch}, not {wanted}"
    said = f"{finding.fix.text} {finding.fix.command or ''}"
    return "" if wanted.lower() in said.lower() else f"the fix says {said!r}, without {wanted!r}"


def planned(recipe: Recipe, by_hand: Callable[[Finding], Recipe] | None = None, **options: Any) -> Looked:
    """What `whet plan` finds in a recipe; mended by the fix's patch, or ``by_hand`` where it is a sentence.

    Args:
        by_hand: does what the finding's text says to the files and returns the recipe to plan again.
        options: of :func:`whet.engine.plan.make_plan`.
    """

    def mend(finding: Finding) -> Looked:
        assert finding.fix is not None
        if by_hand is not None:
            return planned(by_hand(finding), **options)
        return planned(patched(recipe, finding.fix.patch), **options)

    return Looked(make_plan(recipe, **options).findings, mend)
