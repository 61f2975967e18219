"""What was found: explained, and its patches applied to a copy of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..findings import Finding
from .running import run

if TYPE_CHECKING:
    from ..checks.catalogue import Entry
    from ..fixing import Fixed
    from ..fixing import Proposal as PatchedText


def fix(target: str, ids: Sequence[str] = (), progress: Callable[[int], None] | None = None) -> Fixed:
    """Patches of what was found about a recipe (or run) on a copy of it, planned again; writes nothing.

    ``ids`` choose among the findings; by default the errors and warnings that have a patch.
    """
    from ..fixing import fix_recipe, fix_run
    from ..recipe_files import shipped

    path = Path(target)
    if path.is_file() or target in shipped() or path.suffix in (".yaml", ".yml"):
        return fix_recipe(target, ids, progress)
    return fix_run(run(target), ids, progress)


def patch_text(
    text: str, findings: Sequence[Finding], ids: Sequence[str] = (), name: str = "recipe"
) -> PatchedText:
    """Patches of findings on a recipe's text, with the diff; plans nothing. See :func:`.fixing.propose`."""
    from ..fixing import propose

    return propose(text, findings, ids, name)


def write_recipe(text: str, out: Path, *, overwrite: bool = False) -> Path:
    """Write a recipe's text to a file, whole. Refuses to replace one unless told to."""
    from ..fixing import write_fixed

    return write_fixed(text, out, overwrite=overwrite)


def explain(id: str) -> Entry:
    """What a finding's id means. Raises WhetError ``explain.unknown_id`` with the nearest ids."""
    from ..checks.catalogue.search import find_entry

    return find_entry(id)


def catalogue() -> dict[str, Entry]:
    """All findings' ids with what they mean, in the order of the phases."""
    from ..checks.catalogue import CATALOGUE

    return CATALOGUE
