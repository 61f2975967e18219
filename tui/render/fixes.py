"""What `whet fix` changed and what is left, and a catalogue entry."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from whet.engine.api import Entry, Finding, Fixed

from .findings import COLOURS, findings_block
from .text import override, plain, printable

DIFF_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def fixed_details(fixed: Fixed, written: Path | None) -> RenderableType:
    """The diff, then what was applied, what contradicts, what is for a person, what the new plan finds."""
    proposal = fixed.proposal
    parts: list[RenderableType] = [_diff(proposal.diff) if proposal.diff else Text("No patch to apply.")]
    if proposal.applied:
        parts += [Text("\napplied", style="bold"), *(_line(finding) for finding in proposal.applied)]
    if proposal.conflicts:
        parts.append(Text("\nin conflict, not applied", style="bold"))
        parts += [
            Text(
                f"  {one.finding.id} wants {override(one.key, one.wanted)}, but {one.by} sets "
                f"{override(one.key, one.kept)}"
            )
            for one in proposal.conflicts
        ]
    if proposal.by_hand:
        parts += [Text("\nno patch: for you to do", style="bold"), findings_block(proposal.by_hand)]
    if proposal.notes:
        ids = " ".join(dict.fromkeys(finding.id for finding in proposal.notes))
        parts.append(Text(f"\nnotes with a patch, applied when named: {ids}"))
    blocked = fixed.plan.blocked()
    left = [finding for finding in fixed.left if finding.severity != "note"]
    parts.append(Text("\nleft in the new plan" if left else "\nThe new plan has no error and no warning."))
    parts += [findings_block(left)] if left else []
    parts.append(Text(_ending(fixed, written, bool(blocked)), style="bold"))
    return Group(*parts)


def _ending(fixed: Fixed, written: Path | None, blocked: bool) -> str:
    if written is not None:
        return f"\nwritten: {written}" + ("" if blocked else f"\nstart it: whet train {written}")
    if not fixed.proposal.diff:
        return ""
    place = " or --in-place" if fixed.source is not None else ""
    return f"\nNothing is written yet: add -o FILE{place}"


def _diff(diff: str) -> Text:
    text = Text()
    for line in diff.splitlines():
        text.append(f"{printable(line)}\n", DIFF_COLOURS.get(line[:1], ""))
    text.rstrip()
    return text


def _line(finding: Finding) -> Text:
    words = f"  {finding.id}", f"bold {COLOURS[finding.severity]}"
    return Text.assemble(words, f"  {plain(finding.fix.text if finding.fix else finding.title)}")


def entry_details(entry: Entry) -> RenderableType:
    """A catalogue entry as a page."""
    parts: list[RenderableType] = [Text(f"{entry.id}  {entry.title}", style="bold")]
    said = {
        "symptom": entry.symptom,
        "how whet sees it": entry.seen,
        "why": entry.why,
        "what helps": entry.fix,
    }
    for name, words in said.items():
        parts += [Text(f"\n{name}", style="dim"), Text(words)]
    if entry.awaits:
        parts.append(Text(f"\nComes with whet's {entry.awaits}."))
    parts.append(Text(f"\ndocs/troubleshooting.md#{entry.id.lower()}", style="dim"))
    return Group(*parts)
