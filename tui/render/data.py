"""What a data set looks like: its report."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from whet.engine.api import DataReport

from .facts import facts
from .text import plain
from .units import amount

SHOWN_BAD_ROWS = 10


def data_summary(report: DataReport) -> RenderableType:
    """Format, sizes, lengths, supervision."""
    train, length = report.train, report.train.length
    supervised = train.supervised_tokens / max(1, train.tokens)
    rows: list[tuple[str, str | Text]] = [
        ("format", f"{guess.name} ({guess.confidence:.0%} sure: {guess.reason})")
        for guess in report.formats.values()
    ]
    rows += [
        ("rows", f"{train.rows:,} usable, {report.bad_rows:,} bad, {train.duplicates:,} repeated"),
        ("tokens", f"{amount(train.tokens)}, {supervised:.0%} supervised"),
        ("tokens a row", f"p50 {length.p50}, p95 {length.p95}, p99 {length.p99}, longest {length.max}"),
    ]
    if train.truncated_rows:
        rows.append(
            (
                f"cut at {report.max_length}",
                f"{train.truncated_rows:,} rows, {train.truncated_lost_all:,} lose all their supervised "
                f"tokens, {train.truncated_lost_end:,} lose the end",
            )
        )
    if train.unsupervised_rows:
        places = ", ".join(f"line {row.line}" for row in train.examples["unsupervised_rows"][:5])
        rows.append(("no answer", f"{train.unsupervised_rows:,} rows without a supervised token ({places})"))
    rows.append(("template", report.template or "none"))
    return facts(rows)


def data_report(report: DataReport) -> RenderableType:
    """The summary, and the rows that cannot be used."""
    parts: list[RenderableType] = [data_summary(report)]
    if report.bad:
        shown = report.bad[:SHOWN_BAD_ROWS]
        more = f", the first {len(shown)}" if report.bad_rows > len(shown) else ""
        parts.append(Text(f"\nbad rows{more}", style="bold"))
        for bad in shown:
            parts.append(Text.assemble((f"{plain(bad.file)}:{bad.line}  ", "red"), plain(bad.reason, 200)))
            if bad.preview:
                parts.append(Text(f"    {plain(bad.preview, 100)}", style="dim"))
    return Group(*parts)
