"""What `whet suggest` has to say beside the recipe: limits, mended data, models passed over, other ways."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from whet.engine.api import Option, Proposal

from .findings import findings_block
from .text import override, plain
from .units import duration


def proposal_details(found: Proposal, written: Path | None) -> RenderableType:
    """The plan in a line, what was changed or not met, findings, alternatives, and the next command."""
    plan = found.plan
    time = "time unknown" if plan.seconds is None else f"about {duration(plan.seconds)}"
    needs = plan.memory.needed / 2**30
    where = "GPU memory" if plan.memory.where == "gpu" else "memory"
    head = (
        f"{plain(found.recipe.model.name)}: {plan.resolved.total_steps:,} steps, {time}, "
        f"{needs:.1f} GiB of {where}"
    )
    parts: list[RenderableType] = [Text(head, style="bold")]
    for heading, lines in (
        ("", [found.reasons["machine"]] if "machine" in found.reasons else []),
        ("not met", found.unmet),
        ("changed", found.changed),
        ("models passed over", found.passed_over),
    ):
        if lines and heading:
            parts.append(Text(f"\n{heading}", style="bold"))
        parts += [Text(f"  {plain(line, 400)}") for line in lines]
    left = [finding for finding in plan.findings if finding.severity != "note"]
    if left:
        parts += [Text("\nfindings", style="bold"), findings_block(left)]
    if found.alternatives:
        parts += [Text("\nother ways", style="bold"), *(_option(one) for one in found.alternatives)]
    parts.append(Text(_ending(found, written), style="bold"))
    return Group(*parts)


def _option(one: Option) -> Text:
    time = "" if one.minutes is None else f", {duration(60 * one.minutes)}"
    changes = " ".join(override(key, value) for key, value in one.patch.items())
    return Text(f"  {one.kind}: {one.text} ({one.memory_gib:.1f} GiB{time}); {one.why}\n    {changes}")


def _ending(found: Proposal, written: Path | None) -> str:
    if written is None:
        return "\nNothing is written or started yet: add -o FILE"
    return f"\nwritten: {written}" + ("" if found.plan.blocked() else f"\nstart it: whet train {written}")
