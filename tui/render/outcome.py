"""How a run ended: losses, answers before and after, what was written, the verdict, what to try next."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from whet.engine.api import LANGUAGE_MODELS, ExportEvent, RunState, RunSummary, RunView, SampleEvent

from ..run_state import SMOOTHING
from .facts import facts
from .findings import VERDICT_COLOURS, findings_block
from .runs import COLOURS
from .text import plain
from .units import age, amount, duration, size

SCORED = 8
"""Answers shown of those that were trained on."""


def outcome(view: RunView) -> RenderableType:
    """The closing page of a finished run."""
    parts: list[RenderableType] = [Rule(view.id, align="left", style="dim"), *_losses(view)]
    if view.samples:
        parts += [Text("\nanswers, before and after", style="bold"), _answers(view.samples)]
    parts += _written(view)
    parts += _verdict(view)
    parts += [Text("\nnext", style="bold"), _next(view)]
    return Group(*parts)


def run_details(view: RunView) -> RenderableType:
    """All there is to see of a run in any state."""
    state = view.state
    phase = f" ({state.phase})" if state.phase and view.status == "running" else ""
    attempt = f", attempt {state.attempt}" if state.attempt > 1 else ""
    rows: list[tuple[str, str | Text]] = [
        ("run", Text(view.id, style="bold")),
        ("status", Text(f"{view.status}{phase}", style=COLOURS[view.status])),
        *_work(view, attempt),
        ("started", f"{age(time.time() - state.created)} ago by {state.started_by}"),
        ("folder", str(view.path)),
    ]
    if state.behind:
        rows.append(("waits behind", ", ".join(state.behind)))
    if view.paused_by:
        rows.append(("paused by", Text(plain(view.paused_by), style="red")))
    if view.fast_path:
        rows.append(("fast path", plain(view.fast_path)))
    if state.last_checkpoint:
        rows.append(("checkpoint", Path(state.last_checkpoint).name))
    parts: list[RenderableType] = [facts(rows)]
    if state.error:
        words = f"{state.error.message} {state.error.hint}"
        parts.append(Text(f"\n{state.error.code}: {plain(words)}", style="red"))
    parts += _losses(view)
    if view.findings:
        parts += [Text("\nfindings", style="bold"), findings_block(view.findings)]
    if view.samples:
        parts += [Text("\nanswers, before and after", style="bold"), _answers(view.samples)]
    parts += _written(view)
    parts += _verdict(view) + _jobs(view.jobs)
    if view.status in ("interrupted", "failed"):
        parts.append(Text(f"\nthe worker's last words: whet show {view.id} --log 40"))
    if view.status in ("stopped", "interrupted", "failed"):
        parts.append(Text(f"\ngo on with: whet resume {view.id}", style="bold"))
    return Group(*parts)


def _work(view: RunView, attempt: str) -> list[tuple[str, str | Text]]:
    """What it trains, or what a job does and to what."""
    state = view.state
    if state.is_job:
        return [("job", f"{state.method}{attempt}"), ("of run", state.parent or "none")]
    assert view.plan is not None
    recipe = view.plan.recipe
    data = recipe.data.train
    return [
        ("model", recipe.model.name),
        ("data", data if isinstance(data, str) else ", ".join(data)),
        ("step", f"{state.step}/{state.total_steps or '?'}{attempt}"),
    ]


def _losses(view: RunView) -> list[RenderableType]:
    if view.state.is_job:
        came = job_result(view.state)
        return [Text(came, style="bold")] if came else []
    lines: list[RenderableType] = []
    if view.steps:
        seconds = sum(step.seconds for step in view.steps)
        rate = sum(step.tokens for step in view.steps) / seconds if seconds else 0.0
        first, last = view.steps[0], view.steps[-1]
        peak = max(step.memory_bytes for step in view.steps)
        lines.append(
            Text(
                f"training loss {first.loss:.3f} → {last.loss:.3f} in {len(view.steps)} steps, "
                f"{duration(seconds)}, {amount(rate)} tokens/s, peak {size(peak)}"
            )
        )
        names = dict.fromkeys(name for step in view.steps for name in step.metrics)
        for name in names:
            told = [step.metrics[name] for step in view.steps if name in step.metrics]
            first_ones, last_ones = told[:SMOOTHING], told[-SMOOTHING:]
            before, after = sum(first_ones) / len(first_ones), sum(last_ones) / len(last_ones)
            lines.append(Text(f"{plain(name, 40)} {before:.3f} → {after:.3f} in training"))
    if view.evals:
        best = min(view.evals, key=lambda event: event.loss)
        words = f"held-out loss {view.evals[0].loss:.3f}"
        if len(view.evals) > 1:
            words += f" → {best.loss:.3f} (best, step {best.step})"
        lines.append(Text(words, style="bold"))
        base = view.evals[0].metrics if len(view.evals) > 1 else {}
        for name, value in view.evals[-1].metrics.items():
            earlier = f"{base[name]:.3f} → " if name in base else ""
            lines.append(Text(f"{plain(name, 40)} {earlier}{value:.3f}"))
    return lines


def _answers(samples: list[SampleEvent]) -> Table:
    """Of prompts that are asked again and again; of those trained on, the newest ones with their rewards."""
    scored = [sample for sample in samples if sample.rewards]
    if len(scored) == len(samples):
        return _scored(scored[-SCORED:])
    samples = [sample for sample in samples if not sample.rewards]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("prompt", ratio=1, max_width=30)
    table.add_column("before", ratio=2, style="dim")
    table.add_column("after", ratio=2)
    for prompt in dict.fromkeys(sample.prompt for sample in samples):
        mine = [sample for sample in samples if sample.prompt == prompt]
        before = next((sample.answer for sample in mine if sample.step == 0), "")
        words = (plain(prompt, 80), plain(before, 200), plain(mine[-1].answer, 200))
        table.add_row(*map(Text, words))
    return table


def _scored(samples: list[SampleEvent]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, ratio in (("step", 0), ("prompt", 1), ("answer", 2), ("rewards", 1)):
        table.add_column(name, ratio=ratio or None)
    for one in samples:
        rewards = ", ".join(f"{plain(name, 40)} {value:.3g}" for name, value in one.rewards.items())
        table.add_row(str(one.step), *map(Text, (plain(one.prompt, 80), plain(one.answer, 200), rewards)))
    return table


def _written(view: RunView) -> list[RenderableType]:
    """The artefacts; those of the run's own folder, or of its parent's, by their name in it."""
    files = [event for event in view.exports if event.kind != "smoke"]
    if not files:
        return []
    folder = f"{view.path.with_name(view.state.parent or view.id)}/export"
    text = Text(f"in {folder}\n")
    for event in files:
        name = plain(event.path.removeprefix(f"{folder}/"))
        text.append(f"  {event.kind:10}{size(event.bytes) if event.bytes else '':>9}  {name}\n")
    text.rstrip()
    return [Text("\nwritten", style="bold"), text]


def _jobs(jobs: list[RunSummary]) -> list[RenderableType]:
    """One line a job on this run: its id, how it stands, what came of it."""
    if not jobs:
        return []
    text = Text()
    for job in jobs:
        text.append(f"  {job.id}  ")
        text.append(job.status, COLOURS[job.status])
        came = job_result(job.state)
        text.append(f"  {came}\n" if came else "\n")
    text.rstrip()
    return [Text("\njobs", style="bold"), text]


def job_result(state: RunState) -> str:
    """What a job found, in a few words; empty before its end."""
    found = state.summary
    if "tuned_loss" in found:
        rest = "".join(f", {plain(name, 40)} {pair}" for name, pair in measured_pairs(found).items())
        loss = f"held-out loss {found['base_loss']:.3f} → {found['tuned_loss']:.3f}"
        return f"{loss}{rest} ({amount(found['rows'])} rows)"
    return f"verdict: {found['verdict']}" if "verdict" in found else ""


def measured_pairs(found: Mapping[str, Any]) -> dict[str, str]:
    """What an evaluation measured beside the loss, of the base and the tuned model."""
    names = [name.removeprefix("tuned_") for name in found if name.startswith("tuned_")]
    return {
        name: f"{found[f'base_{name}']:.{2 if name == 'perplexity' else 3}f} → "
        f"{found[f'tuned_{name}']:.{2 if name == 'perplexity' else 3}f}"
        for name in names
        if name != "loss" and f"base_{name}" in found
    }


def proof_lines(proofs: list[ExportEvent]) -> Text:
    """One line a proven file; below it each proof that did not pass, with its evidence."""
    text = Text()
    for event in proofs:
        status = str(event.detail.get("status"))
        text.append(f"{status:5}", VERDICT_COLOURS.get(status, ""))
        text.append(plain(event.path.rsplit("/", 1)[-1]) + "\n")
        for proof in event.detail.get("proofs", []):
            if proof["status"] != "pass":
                text.append(f"      {proof['name']}: {proof['status']}  {plain(proof['summary'], 300)}\n")
                text.append(f"      fix: {plain(proof['fix'], 300)}\n" if proof["fix"] else "")
    text.rstrip()
    return text


def _verdict(view: RunView) -> list[RenderableType]:
    proofs = [event for event in view.exports if event.kind == "smoke"]
    if not proofs:
        return []
    verdict = view.verdict or "none"
    return [
        Text("\nproof", style="bold"),
        proof_lines(proofs),
        Text.assemble("verdict: ", (verdict, VERDICT_COLOURS.get(verdict, ""))),
    ]


def _next(view: RunView) -> Text:
    gguf = next((event.path for event in view.exports if event.kind == "gguf"), None)
    run = view.state.parent or view.id
    talks = view.plan is None or view.plan.recipe.method.kind in LANGUAGE_MODELS
    lines = [(f"whet chat {run}", "talk: base beside tuned")] if talks else []
    if gguf and talks:
        lines.append((f"whet chat {shlex.quote(gguf)}", ""))
    lines += [
        (f"whet show {view.id}", "this page, and the findings"),
        ("whet recipes", "start with your own model and data"),
    ]
    width = max(len(command) for command, words in lines if words)
    return Text("\n".join(f"{command:{width}}  {words}".rstrip() for command, words in lines))
