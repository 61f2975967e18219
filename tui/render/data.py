"""What a data set looks like: its report, and rows as the model's tokens."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from whet.engine.api import DataReport, TemplatePreview

from .text import plain, printable
from .units import amount


def data_report(report: DataReport) -> RenderableType:
    """Format, sizes, lengths, supervision, and the rows that cannot be used."""
    train = report.train
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for source, guess in report.formats.items():
        table.add_row(
            "format", f"{guess.format} ({guess.confidence:.0%} sure: {plain(guess.reason, 120)})  {source}"
        )
    table.add_row("rows", f"{train.rows:,} usable, {report.bad_rows:,} bad, {train.duplicates:,} repeated")
    supervised = train.supervised_tokens / max(1, train.tokens)
    length = train.length
    table.add_row("tokens", f"{amount(train.tokens)}, {supervised:.0%} supervised")
    table.add_row(
        "tokens a row", f"p50 {length.p50}, p95 {length.p95}, p99 {length.p99}, longest {length.max}"
    )
    table.add_row(
        f"cut at {report.max_length}",
        f"{train.truncated_rows:,} rows, {train.truncated_lost_all:,} lose all their supervised tokens, "
        f"{train.truncated_lost_end:,} lose the end",
    )
    table.add_row("template", report.template or "none")
    parts: list[RenderableType] = [table]
    if report.bad:
        parts.append(Text(f"\nbad rows (first {len(report.bad)})", style="bold"))
        parts += [
            Text.assemble(
                (f"{bad.file}:{bad.line}  ", "red"), plain(bad.reason, 160), (f"  {bad.preview}", "dim")
            )
            for bad in report.bad
        ]
    return Group(*parts)


def template_preview(preview: TemplatePreview) -> RenderableType:
    """One row as tokens: supervised ones green, special tokens reversed, tokens parted by a thin bar."""
    head = Text(
        f"{preview.file}:{preview.line}  {len(preview.tokens)} tokens, "
        f"{sum(token.supervised for token in preview.tokens)} supervised\n",
        style="dim",
    )
    text = Text()
    for token in preview.tokens:
        style = "green" if token.supervised else "dim"
        words = printable(token.text)
        text.append(words.replace("\n", "⏎\n"), style=f"{style} reverse" if token.special else style)
        text.append("" if words.endswith("\n") else "·", style="dim")
    return Group(head, text, "")
