"""What a data set looks like: its report, and rows as the model's tokens."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from whet.engine.api import DataReport, TemplatePreview

from .facts import facts
from .text import plain, printable
from .units import amount

SHOWN_BAD_ROWS = 10


def data_report(report: DataReport) -> RenderableType:
    """Format, sizes, lengths, supervision, and the rows that cannot be used."""
    train, length = report.train, report.train.length
    supervised = train.supervised_tokens / max(1, train.tokens)
    rows: list[tuple[str, str | Text]] = [
        ("format", f"{guess.format or 'unknown'} ({guess.confidence:.0%} sure: {guess.reason})")
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
    parts: list[RenderableType] = [facts(rows)]
    if report.bad:
        shown = report.bad[:SHOWN_BAD_ROWS]
        more = f", the first {len(shown)}" if report.bad_rows > len(shown) else ""
        parts.append(Text(f"\nbad rows{more}", style="bold"))
        for bad in shown:
            parts.append(Text.assemble((f"{plain(bad.file)}:{bad.line}  ", "red"), plain(bad.reason, 200)))
            if bad.preview:
                parts.append(Text(f"    {plain(bad.preview, 100)}", style="dim"))
    return Group(*parts)


def template_preview(preview: TemplatePreview) -> RenderableType:
    """One row as tokens: supervised ones green and underlined, special tokens reversed, parted by a dot."""
    place = f"{plain(preview.file)}:{preview.line}"
    if preview.problem:
        return Text.assemble((f"{place}  ", "dim"), ("cannot be used: ", "red"), plain(preview.problem), "\n")
    supervised = sum(token.supervised for token in preview.tokens)
    cut = ", cut at the maximum length" if preview.truncated else ""
    head = Text(f"{place}  {len(preview.tokens)} tokens, {supervised} supervised{cut}", style="dim")
    text = Text()
    for number, token in enumerate(preview.tokens):
        style = "green underline" if token.supervised else "dim"
        words = printable(token.text).replace("\n", "⏎\n")
        text.append(words, style=f"{style} reverse" if token.special else style)
        last = number + 1 == len(preview.tokens)
        text.append("" if last or words.endswith("\n") else "·", style="dim")
    return Group(head, text, Text())
