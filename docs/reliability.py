"""docs/reliability.md from what the suites counted: `make reliability`; `--check` only compares."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "reliability"
PAGE = ROOT / "docs" / "reliability.md"
PYTHONS = ("3.11", "3.12", "3.13")
ENDS = ("oldest", "newest")
MATRIX = "matrix-"
SUMMED_UP_BY = 2  # counts of a suite that the first table shows
Count = dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """What a suite is called, what counts it, and what its numbers mean."""

    title: str
    command: str
    about: str


SUITES = {
    "chaos": Suite(
        "Kills survived",
        "make chaos",
        "Workers are killed at random moments, disks fill, files vanish or rot. Survived is: nothing "
        "finished was lost, the resumed curve is the uninterrupted one, the state says what happened, and "
        "the next step is offered. A clock that jumps, memory that ends and a machine that is taken away "
        "have tests beside these, which are not counted here: `tests/chaos`.",
    ),
    "fuzz": Suite(
        "Inputs tried",
        "make fuzz",
        "Mutated recipes, rows, templates, tokenizers, adapters, weights, GGUF files, events and tool calls. "
        "Each must be read, or refused by an error that says why: no traceback, no hang, nothing written "
        "outside of the home.",
    ),
    "faults": Suite(
        "Faults injected",
        "make faults",
        "Broken set-ups that must raise their own finding with a fix that ends them, and healthy ones that "
        "must raise nothing; one line a finding in [faults](faults.md).",
    ),
    "security": Suite(
        "Attacks refused",
        "make security",
        "Hostile model repositories, data and tool calls, and the places where a secret could leak.",
    ),
    "clients": Suite(
        "Clients of others",
        "make mcp-clients",
        "The MCP server before clients that others wrote.",
    ),
    "capabilities": Suite(
        "GPU generations compiled for",
        "make capabilities",
        "Every kernel, compiled ahead of time for each compute capability, without a GPU: no error, no "
        "spilled registers beyond what is known, no more shared memory than there is. What 7.0 would launch "
        "is compiled as well; torch's own builds for CUDA 13 have left it out.",
    ),
}
HEAD = """# Reliability

Made by `make reliability` from [what the suites counted](../benchmarks/results/reliability/), each when it
was last run on purpose; nothing here is typed by hand. `make test` runs short parts of the same suites and
counts nothing.
"""


def page(results: dict[str, Count]) -> str:
    """The whole page."""
    cells = {name: one for name, one in results.items() if name.startswith(MATRIX)}
    others = [name for name in results if name not in SUITES and name not in cells]
    parts = [HEAD.strip(), _summary(results, cells)]
    for name, suite in SUITES.items():
        parts += [f"## {suite.title}", suite.about, _counted(results.get(name), suite.command)]
    for name in others:
        parts += [f"## {name}", _counted(results[name], "")]
    return "\n\n".join([*parts, _matrix(cells)]) + "\n"


def _summary(results: dict[str, Count], cells: dict[str, Count]) -> str:
    lines = ["| what | counted | when |", "|---|---|---|"]
    for name, suite in SUITES.items():
        one = results.get(name)
        told = "not counted" if one is None else ", ".join(_words(one)[:SUMMED_UP_BY])
        lines.append(f"| {_link(suite.title)} | {told} | {one['date'] if one else ''} |")
    passed = sum(_passed(cell) for cell in cells.values())
    every = len(PYTHONS) * len(ENDS)
    told = f"{passed} of {every} sets of versions, {len(cells)} tried" if cells else "not counted"
    dates = sorted({cell["date"] for cell in cells.values()})
    lines.append(f"| {_link('Versions passed')} | {told} | {', '.join(dates)} |")
    return "\n".join(lines)


def _counted(one: Count | None, command: str) -> str:
    """Each count on a line, and how to count again."""
    if one is None:
        return f"Not counted: `{command}` has not been run on purpose."
    lines = ["| what | count |", "|---|---|", *(f"| {what} | {n:,} |" for what, n in one["counts"].items())]
    versions = ", ".join(f"{package} {version}" for package, version in one["versions"].items())
    lines += ["", f"`{one['command']}`, {one['date']}, {_minutes(one['seconds'])}: {versions}."]
    return "\n".join(lines)


def _matrix(cells: dict[str, Count]) -> str:
    """One line a set of versions, with those that were not tried."""
    lines = [
        "## Versions passed",
        "",
        "A set of tests in an environment of its own, with the oldest and with the newest versions that "
        "`pyproject.toml` allows: what may be imported when, recipes and plans, training on the fast path "
        "and by preferences, embedding, export (`make matrix`). All without a GPU, so the oldest TRL is "
        "1.16: 1.15 trains on GPUs only, and finding [E01](troubleshooting.md#e01) refuses it elsewhere.",
        "",
        "| Python | versions | torch | transformers | TRL | passed | failed | skipped | when |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for python in PYTHONS:
        for end in ENDS:
            cell = cells.get(f"{MATRIX}{python}-{end}")
            lines.append(f"| {python} | {end} | {' | '.join(_cell(cell))} |")
    return "\n".join(lines)


def _cell(cell: Count | None) -> list[str]:
    if cell is None:
        return ["", "", "", "not tried", "", "", ""]
    counts, versions = cell["counts"], cell["versions"]
    return [
        *(versions[package] for package in ("torch", "transformers", "trl")),
        *(str(counts[what]) for what in ("passed", "failed", "skipped")),
        cell["date"],
    ]


def _passed(cell: Count) -> bool:
    return cell["counts"]["failed"] == 0 and cell["counts"]["passed"] > 0


def _words(one: Count) -> list[str]:
    return [f"{count:,} {what}" for what, count in one["counts"].items()]


def _link(title: str) -> str:
    return f"[{title}](#{title.lower().replace(' ', '-')})"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def read_results(folder: Path = RESULTS) -> dict[str, Count]:
    """Each file of counts by its name."""
    files = sorted(folder.glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def main() -> int:
    """Write the page; with --check, only say whether it is what the files say."""
    made = page(read_results())
    if "--check" not in sys.argv:
        PAGE.write_text(made, encoding="utf-8")
        return 0
    same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == made
    if not same:
        print(f"{PAGE.relative_to(ROOT)} is not what the counts say: make reliability", file=sys.stderr)
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
