"""A run as a page of Markdown: what was trained, what came of it, what was found, what was written."""

from __future__ import annotations

from whet.engine import api

SHOWN = 3


def report(view: api.RunView) -> str:
    """The page. Answers are a model's text: they are quoted, never to be followed."""
    state = view.state
    lines = [
        f"# Run {view.id}: {view.status}",
        "",
        *_recipe(view),
        f"Step {state.step} of {state.total_steps or '?'}, started by {state.started_by}.",
        "",
        *_losses(view),
        *_findings(view),
        *_samples(view),
        *_files(view),
    ]
    if state.error is not None:
        lines += ["## Error", f"[{state.error.code}] {state.error.message} {state.error.hint}", ""]
    return "\n".join(lines)


def _recipe(view: api.RunView) -> list[str]:
    if view.plan is None:  # a smoke test of files
        return []
    recipe = view.plan.recipe
    adapter = f"{recipe.adapter.kind} of rank {recipe.adapter.rank}"
    return [f"{recipe.model.name} on {recipe.data.train}, {adapter}."]


def _losses(view: api.RunView) -> list[str]:
    if not view.steps:
        return []
    lines = ["## Loss", f"Training: {view.steps[0].loss:.3f} at first, {view.steps[-1].loss:.3f} at last."]
    if view.evals:
        best = min(one.loss for one in view.evals)
        lines.append(f"Held out: {view.evals[0].loss:.3f} at first, {best:.3f} at best.")
        first, last = view.evals[0].metrics, view.evals[-1].metrics
        lines += [
            f"{api.printable(name)}: {first.get(name, value):.3f} at first, {value:.3f} at last."
            for name, value in last.items()
        ]
    return [*lines, ""]


def _findings(view: api.RunView) -> list[str]:
    if not view.findings:
        return []
    return ["## Findings", *(f"- {one.severity} {one.id}: {one.title}" for one in view.findings), ""]


def _samples(view: api.RunView) -> list[str]:
    """The first and the last answer to the same prompts."""
    lines = []
    for prompt in list(dict.fromkeys(one.prompt for one in view.samples))[:SHOWN]:
        mine = [one for one in view.samples if one.prompt == prompt]
        lines += [f"> {prompt}", f"- step {mine[0].step}: {mine[0].answer}"]
        if len(mine) > 1:
            lines.append(f"- step {mine[-1].step}: {mine[-1].answer}")
    return ["## Answers (a model's words)", *lines, ""] if lines else []


def _files(view: api.RunView) -> list[str]:
    lines = []
    for one in view.exports:
        proof = f", verdict {one.detail['status']}" if one.kind == "smoke" else ""
        lines.append(f"- {one.kind}: {one.path}, {one.bytes / (1 << 20):.1f} MiB{proof}")
    verdict = [f"Verdict: {view.verdict}"] if view.verdict else []
    return ["## Files", *lines, *verdict, ""] if lines else []
