"""What run_get shows of a run: six views, each in pages that fit a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from whet.engine import api

from .common import fitting, number, place

View = Literal["summary", "config", "metrics", "logs", "samples", "artifacts"]

LINE = 300
"""Characters of a log's line that are shown."""
ANSWER = 400


@dataclass
class Page:
    """One view: facts of the whole, some of its entries, and where the next ones begin."""

    facts: dict[str, Any] = field(default_factory=dict)
    entries: list[Any] = field(default_factory=list)
    cursor: str | None = None


def look(view: View, run: api.RunView, limit: int, cursor: str | None) -> Page:
    """One page of one view of a run. Raises WhetError ``call.cursor``."""
    return {
        "summary": _summary,
        "config": _config,
        "metrics": _metrics,
        "logs": _logs,
        "samples": _samples,
        "artifacts": _artifacts,
    }[view](run, limit, cursor)


def thinned(values: Sequence[float], count: int) -> list[int]:
    """Indices of about ``count`` values evenly spaced, the first, the last and the least among them."""
    if len(values) <= count:
        return list(range(len(values)))
    last = len(values) - 1
    least = min(range(len(values)), key=lambda index: values[index])
    even = {round(index * last / (count - 1)) for index in range(count)} if count > 1 else {0}
    return sorted(even | {0, least, last})


def _summary(run: api.RunView, limit: int, cursor: str | None) -> Page:
    state = run.state
    facts = {
        "model": state.model,
        "method": state.method,
        "parent": state.parent,
        "started_by": state.started_by,
        "step": state.step,
        "total_steps": state.total_steps,
        "loss": number(state.loss),
        "eval_loss": number(state.eval_loss),
        "best_eval_loss": number(min((one.loss for one in run.evals), default=None)),
        "metrics": {
            **(measured(run.steps[-1]) if run.steps else {}),
            **(measured(run.evals[-1]) if run.evals else {}),
        },
        "attempt": state.attempt,
        "paused_by": run.paused_by,
        "verdict": run.verdict,
        "error": None if state.error is None else state.error.model_dump(),
        "fast_path": run.fast_path,
        "result": {key: _plain(value) for key, value in state.summary.items()},
    }
    facts = {name: value for name, value in facts.items() if value not in (None, "", {})}
    return _paged(facts, [one.id for one in run.jobs], limit, cursor)


def _config(run: api.RunView, limit: int, cursor: str | None) -> Page:
    if run.plan is None:
        return Page({"job": run.state.method})
    values = run.plan.recipe.model_dump(mode="json")
    flat: dict[str, Any] = {}
    for section, value in values.items():
        inner = {f"{section}.{key}": one for key, one in value.items()} if isinstance(value, dict) else None
        flat |= {section: value} if inner is None else inner
    chosen = {key: value for key, value in flat.items() if value not in (None, [], {})}
    told = {"device", "base_precision", "total_steps", "strategy", "ranks"}
    resolved = run.plan.resolved.model_dump(mode="json", include=told)
    return Page({"plan_id": run.plan.id, **chosen, "resolved": resolved})


def _metrics(run: api.RunView, limit: int, cursor: str | None) -> Page:
    losses = [one.loss for one in run.steps]
    kept = [run.steps[index] for index in thinned(losses, limit)]
    least = min(run.steps, key=lambda one: one.loss, default=None)
    evals = [run.evals[index] for index in thinned([one.loss for one in run.evals], 20)]
    facts = {
        "steps": len(losses),
        "first": number(losses[0]) if losses else None,
        "last": number(losses[-1]) if losses else None,
        "min": None if least is None else {"step": least.step, "loss": number(least.loss)},
        "evals": [
            {"step": one.step, "loss": number(one.loss), "best": one.best, **measured(one)} for one in evals
        ],
    }
    entries = [
        {
            "step": one.step,
            "loss": number(one.loss),
            "learning_rate": number(one.learning_rate, 3),
            "grad_norm": number(one.grad_norm, 3),
            "tokens_per_second": round(one.tokens / one.seconds) if one.seconds > 0 else None,
            **measured(one),
        }
        for one in kept
    ]
    return Page(facts, entries)


def measured(event: api.EvalEvent | api.StepEvent) -> dict[str, Any]:
    """What an evaluation or a step tells beside the loss."""
    return {name: number(value, 4) for name, value in event.metrics.items()}


def _logs(run: api.RunView, limit: int, cursor: str | None) -> Page:
    """From the end on; half as many lines until they fit."""
    before = None if cursor is None else place(cursor, 1 << 60)
    while True:
        page = api.log(run.id, limit, before)
        lines = [line[:LINE] for line in page.lines]
        if limit == 1 or len(fitting(lines, limit)) == len(lines):
            facts = {"bytes": page.size, "from_byte": page.start}
            return Page(facts, lines, str(page.start) if page.start > 0 else None)
        limit //= 2


def _samples(run: api.RunView, limit: int, cursor: str | None) -> Page:
    """The newest first, so that the first page shows what the run has learnt."""
    entries = [
        {
            "step": one.step,
            "prompt": one.prompt[:ANSWER],
            "answer": one.answer[:ANSWER],
            "stopped": one.stopped,
            **_rewards(one),
        }
        for one in sorted(run.samples, key=lambda one: -one.step)
    ]
    return _paged({"samples": len(entries), "base_is_step": 0}, entries, limit, cursor)


def _rewards(sample: api.SampleEvent) -> dict[str, Any]:
    """Of an answer that was trained on; nothing for others."""
    rewards = {name: number(value, 4) for name, value in sample.rewards.items()}
    return {"rewards": rewards} if rewards else {}


def _artifacts(run: api.RunView, limit: int, cursor: str | None) -> Page:
    entries = [
        {
            "kind": one.kind,
            "path": str(one.path),
            "bytes": one.bytes,
            "verdict": None if one.verdict is None else one.verdict.status,
        }
        for one in api.artifacts(run.id)
    ]
    return _paged({"verdict": run.verdict, "folder": str(run.path / "export")}, entries, limit, cursor)


def _paged(facts: dict[str, Any], entries: list[Any], limit: int, cursor: str | None) -> Page:
    start = place(cursor, len(entries))
    shown = fitting(entries[start:], limit)
    end = start + len(shown)
    return Page(facts, shown, str(end) if end < len(entries) else None)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return number(value) if isinstance(value, float) else value
