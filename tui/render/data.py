"""What a data set looks like: its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from whet.engine.api import DataReport, Use

from .facts import facts
from .text import plain
from .units import amount

SHOWN_BAD_ROWS = 10
SHOWN_CLASSES = 12


def data_summary(report: DataReport) -> RenderableType:
    """Format, sizes, lengths; of chats what is supervised, of classes how often each occurs."""
    train, length = report.train, report.train.length
    supervised = f", {train.supervised_tokens / max(1, train.tokens):.0%} supervised"
    rows: list[tuple[str, str | Text]] = [
        ("layout", plain(guess.reason))
        if guess.format is None
        else ("format", f"{guess.name} ({guess.confidence:.0%} sure: {guess.reason})")
        for guess in report.formats.values()
    ]
    rows += [
        ("rows", f"{train.rows:,} usable, {report.bad_rows:,} bad, {train.duplicates:,} repeated"),
        ("tokens", f"{amount(train.tokens)}{supervised if report.template or not _others(report) else ''}"),
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
    if report.labels:
        rows.append(("classes", _classes(report.labels)))
    if report.template or not _others(report):
        rows.append(("template", report.template or "none"))
    return facts(rows)


def _others(report: DataReport) -> bool:
    """Whether the rows are of another method than supervised fine-tuning."""
    return report.format.format is None


def _classes(labels: Mapping[str, int]) -> str:
    """Each with its rows, the most frequent first."""
    often = sorted(labels.items(), key=lambda one: -one[1])
    more = f" and {len(often) - SHOWN_CLASSES} more" if len(often) > SHOWN_CLASSES else ""
    return ", ".join(f"{plain(name, 30)} {count:,}" for name, count in often[:SHOWN_CLASSES]) + more


def uses_table(uses: Sequence[Use]) -> RenderableType:
    """Methods that read the rows, the likeliest first, each with what it reads of them."""
    return facts((use.method, use_words(use)) for use in uses)


def use_words(use: Use) -> str:
    """The layout and the columns that a method reads."""
    columns = ", ".join(
        name if name == field else f"{name} from {plain(field, 30)}" for name, field in use.columns.items()
    )
    return f"{use.layout}: {columns}" if columns else use.layout


def data_report(report: DataReport, uses: Sequence[Use] = ()) -> RenderableType:
    """The summary, which methods read such rows, and the rows that cannot be used."""
    parts: list[RenderableType] = [data_summary(report)]
    if uses:
        parts += [Text("\nread by (method.kind)", style="bold"), uses_table(uses)]
    if report.bad:
        shown = report.bad[:SHOWN_BAD_ROWS]
        more = f", the first {len(shown)}" if report.bad_rows > len(shown) else ""
        parts.append(Text(f"\nbad rows{more}", style="bold"))
        for bad in shown:
            parts.append(Text.assemble((f"{plain(bad.file)}:{bad.line}  ", "red"), plain(bad.reason, 200)))
            if bad.preview:
                parts.append(Text(f"    {plain(bad.preview, 100)}", style="dim"))
    return Group(*parts)
