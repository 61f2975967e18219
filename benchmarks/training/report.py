"""What a row measured, as Markdown."""

from __future__ import annotations

import datetime
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from rows import Job, Result, Row

HEAD = (
    "stack", "asked", "recompute", "{unit}/s", "over {base}", "overall", "s/step", "peak GiB", "reserved",
    "loading GiB", "load s", "8th step s", "first loss", "last loss", "last vs {reference}",
)  # fmt: skip


def table(row: Row, jobs: Mapping[str, Job], results: Mapping[str, Result]) -> str:
    """One line a stack, then the targets and how each of whet's runs was planned."""
    reference = next((label for label in ("hf", row.base, *results) if _losses(results, label)), row.base)
    head = [cell.format(base=row.base, reference=reference, unit=row.unit) for cell in HEAD]
    lines = [_line(head), "|" + "---|" * len(head)]
    for label, result in results.items():
        lines.append(_line(_cells(row, label, jobs[label], result, results, reference)))
    lines += ["", *(f"- {target.check(results, row.rate, row.unit)}" for target in row.targets)]
    lines += [f"- {label}: {each.note}{_planned(each)}" for label, each in results.items() if each.note]
    if row.note:
        lines += ["", row.note]
    return "\n".join(lines)


def _cells(
    row: Row, label: str, job: Job, result: Result, results: Mapping[str, Result], reference: str
) -> list[str]:
    asked = f"{job.batch}×{job.accumulation}, {job.precision}"
    cells = [label, asked, _recompute(job)]
    if result.error:
        return [*cells, result.error.replace("|", "/"), *[""] * (len(HEAD) - 4)]
    base = results.get(row.base)
    ratio = ""
    if base is not None and not base.error:
        ratio = f"{getattr(result, row.rate) / getattr(base, row.rate):.2f}×"
    first, last = (result.losses[0], result.losses[-1]) if result.losses else (float("nan"),) * 2
    against = _losses(results, reference)
    return [
        *cells,
        f"{result.rate:,.0f}",
        ratio,
        f"{result.mean_rate:,.0f}",
        f"{result.step:.3f}",
        f"{result.peak:.2f}" if result.peak else "",
        f"{result.reserved:.2f}" if result.reserved else "",
        f"{result.load_peak:.2f}" if result.load_peak else "",
        f"{result.load:.1f}",
        "" if result.eighth is None else f"{result.eighth:.1f}",
        f"{first:.4f}",
        f"{last:.4f}",
        f"{last / against[-1] - 1:+.2%}" if against else "",
    ]


def _planned(result: Result) -> str:
    """What the planner had predicted, and how far that was from what was measured."""
    words = ""
    if result.predicted_peak is not None and result.peak:
        off = result.predicted_peak / result.peak - 1
        words += f"; planned peak {result.predicted_peak:.2f} GiB ({off:+.1%})"
    if result.predicted_step is not None and result.step:
        words += (
            f"; planned step {result.predicted_step:.3f} s ({result.predicted_step / result.step - 1:+.1%})"
        )
    return words


def _recompute(job: Job) -> str:
    if job.task == "embedding":
        return "off"
    if job.stack == "whet":
        return (
            "planned" if job.cap is None else f"planned for {job.cap:.1f} GiB" if job.cap else "least memory"
        )
    if not job.checkpointing:
        return "off"
    return '"unsloth"' if job.stack == "unsloth" else "on"


def _losses(results: Mapping[str, Result], label: str) -> list[float]:
    return results[label].losses if label in results else []


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def heading(row: Row, jobs: Mapping[str, Job], results: Mapping[str, Result]) -> str:
    """What was run, when, with which versions and by which command."""
    packages: dict[str, str] = {}
    for result in results.values():
        packages |= result.versions
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    job = next(iter(jobs.values()))
    return "\n".join(
        [
            f"## {row.title}",
            "",
            f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, {device(results)}, "
            f"Python {platform.python_version()}, {versions}.",
            f"`{shlex.join(['python', '-P', *sys.argv])}`",
            f"Random weights, {row.adapter}; {job.steps} optimizer steps, "
            f"the first {job.warm} not measured; {row.unit}/s is the median step's, overall that of all "
            "measured steps together.",
            "",
        ]
    )


def device(results: Mapping[str, Result]) -> str:
    """The GPU's name, or the processor's."""
    names = [result.device for result in results.values() if result.device]
    return names[0] if names else platform.processor() or platform.machine()


def append(out: Path, model: str, results: Mapping[str, Result], text: str) -> Path:
    """Put a row's text at the end of ``<model>-<device>-<date>.md`` in a folder, or of the file ``out``."""
    if out.suffix != ".md":
        name = "-".join(device(results).lower().replace("nvidia", "").split())
        out = out / f"{model}-{name}-{datetime.datetime.now(datetime.UTC):%Y-%m-%d}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        file.write(text + "\n")
    return out
