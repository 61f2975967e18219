"""What a suite counted, as a file from which docs/reliability.md is made.

A suite that is run on purpose (`make chaos`, `make fuzz`, ...) ends with :func:`write_counts`; the short
parts of it that `make test` runs write nothing. Then `make reliability`, or `make check` finds the page old.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "reliability"
PACKAGES = ("torch", "transformers", "trl")


def write_counts(
    name: str,
    command: str,
    counts: Mapping[str, int],
    seconds: float,
    versions: Mapping[str, str] | None = None,
    folder: Path = RESULTS,
) -> Path:
    """Write ``<name>.json`` and return its path; what was counted under that name before is replaced.

    ``name`` is small letters, digits, dots and dashes: ``chaos``, ``fuzz``, ``faults``, ``security``,
    ``clients``; docs/reliability.py has a heading for each of these, and shows others under their own name.
    ``command`` is what a reader types to count again, e.g. ``make chaos``.
    ``counts`` are what was really counted, in a reader's words and the page's order, the two that sum it up
    first: ``{"kills": 100, "kills survived": 100, "of them inside a checkpoint": 31}``.
    ``seconds`` is the wall time. ``versions`` are added to those of Python, torch, transformers and TRL here.
    Raises ValueError for a name or a count that is none.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        raise ValueError(f"{name!r} is no name for a file of counts.")
    wrong = {what: count for what, count in counts.items() if type(count) is not int or count < 0}
    if wrong or not counts:
        raise ValueError(f"Counts are whole numbers, 0 or more; got {wrong or 'none'}.")
    document = {
        "name": name,
        "date": date.today().isoformat(),
        "command": command,
        "versions": here() | dict(versions or {}),
        "counts": dict(counts),
        "seconds": round(seconds, 1),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def here() -> dict[str, str]:
    """Versions of Python and of the libraries that train, as installed here."""
    return {"Python": platform.python_version()} | {package: version(package) for package in PACKAGES}
