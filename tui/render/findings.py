"""Findings and errors: the fact, the evidence, the fix."""

from __future__ import annotations

from rich.console import Console, Group
from rich.text import Text

from whet.engine.api import Finding, WhetError

from .text import override, plain, printable

VERDICT_COLOURS = {"pass": "bold green", "warn": "bold yellow", "fail": "bold red"}
LONGEST_VALUE = 160
COLOURS = {"error": "red", "warning": "yellow", "note": "blue"}


def finding_text(finding: Finding) -> Text:
    """Severity, id, title; evidence and fix on lines below."""
    text = Text()
    text.append(f"{finding.severity} {finding.id}", style=f"bold {COLOURS[finding.severity]}")
    text.append(f"  {plain(finding.title)}")
    if finding.evidence:
        facts = ", ".join(f"{key} {value}" for key, value in finding.evidence.items())
        text.append(f"\n    seen: {plain(facts, 300)}", style="dim")
    if finding.fix:
        text.append(f"\n    fix:  {plain(finding.fix.text)}")
        for key, value in finding.fix.patch.items():
            text.append(f"\n          {_setting(finding.id, key, value)}", style="bold")
        if finding.fix.command:
            text.append(f"\n          {plain(finding.fix.command)}", style="bold")
    return text


def _setting(id: str, key: str, value: object) -> str:
    """As it can be pasted behind a recipe; a whole text, such as a template, is `whet fix`'s to set."""
    if isinstance(value, str) and ("\n" in value or len(value) > LONGEST_VALUE):
        return f"{key}: a text of {len(value)} characters, set by  whet fix RECIPE {id}"
    return override(key, value)


def findings_block(findings: list[Finding]) -> Group:
    """All findings, worst first."""
    order = {"error": 0, "warning": 1, "note": 2}
    ranked = sorted(findings, key=lambda finding: order[finding.severity])
    return Group(*(finding_text(finding) for finding in ranked))


def print_error(console: Console, error: WhetError) -> None:
    """The fact, then what to do."""
    text = Text.assemble(("error ", "bold red"), (error.code, "dim"), f"\n{printable(error.message)}")
    if error.hint:
        text.append(f"\n{printable(error.hint)}", style="bold")
    console.print(text, soft_wrap=True)
