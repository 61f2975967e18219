"""What the Run screen says: the notice of a run's state, and the assistant's advice. Facts in, words out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whet.engine import api

from ...render.outcome import measured_pairs
from ...render.text import plain
from ...render.units import clock
from ...run_state import RunProgress
from ...widgets.assistant_bar import Advice
from .figures import number, seconds_left
from .look import RESUMABLE, Look

MOST_FINDINGS = 3


@dataclass(frozen=True)
class Notice:
    """A card above the curves."""

    severity: str
    """error, warning, note: how it is coloured; the title says it too."""
    title: str
    lines: tuple[str, ...] = ()


def notice(look: Look, progress: RunProgress, findings: Sequence[api.Finding]) -> Notice | None:
    """What is to be known before anything else; None while a run simply runs."""
    summary, state = look.summary, look.summary.state
    match summary.status:
        case "failed" | "unreadable":
            return _failed(look, progress, findings)
        case "interrupted":
            return Notice(
                "warning",
                f"Interrupted at step {state.step}: the worker was killed, or the machine went down.",
                (_goes_on(progress),),
            )
        case "stopped":
            why = state.summary.get("paused_by")
            reason = f" because of {why} (6 shows it)" if why else ""
            return Notice("warning", f"Stopped at step {state.step}{reason}.", (_goes_on(progress),))
        case "waiting" | "queued":
            return _waiting(look)
        case "finished":
            return _finished(look, progress)
    if look.asked == "checkpoint":
        return Notice(
            "warning",
            "Asked to stop: it finishes its step, writes a checkpoint and ends.",
            ("x again ends it at once, without the checkpoint.",),
        )
    return None


def _failed(look: Look, progress: RunProgress, findings: Sequence[api.Finding]) -> Notice:
    error = look.summary.state.error
    if error is None:
        return Notice("error", f"{look.summary.status}, and no reason was written.", ("l shows the log.",))
    mending = [one for one in findings if one.severity != "note"][:MOST_FINDINGS]
    lines = [error.message, error.hint, *(f"{one.id}  {one.title}" for one in mending)]
    keys = ["l log", "b debug bundle"]
    if any(one.fix and one.fix.patch for one in mending):
        keys.insert(0, "6 then a: apply a fix")
    if look.summary.status in RESUMABLE:
        keys.insert(0, f"r resume {_place(progress)}")
    return Notice("error", f"Failed: {error.code}", (*filter(None, lines), " · ".join(keys)))


def _waiting(look: Look) -> Notice:
    behind = look.summary.state.behind
    if look.summary.status == "queued":
        return Notice("note", "Queued: its worker is starting.")
    if not behind:
        return Notice("note", "Waits for a GPU; next in line.")
    who = ", ".join(behind)
    return Notice(
        "note",
        f"Waits for a GPU behind {who}.",
        ("It starts by itself when its turn comes. x withdraws it.",),
    )


def _finished(look: Look, progress: RunProgress) -> Notice:
    state = look.summary.state
    words = {"evaluate": _evaluated, "export": _exported, "smoke": _proven}.get(state.method, _trained)
    spent = 0.0 if progress.began is None else progress.newest - progress.began
    return Notice("note", f"Finished in {clock(spent)}. {words(look, progress)}".rstrip(), _next(look))


def _trained(look: Look, progress: RunProgress) -> str:
    said = []
    if progress.evals:
        first, best = progress.evals[min(progress.evals)], progress.best_eval
        if best is not None and best is not first:
            said.append(f"Held-out loss {number(first.loss)} → {number(best.loss)} (step {best.step}).")
        else:
            said.append(f"Held-out loss {number(first.loss)}.")
    for name, (before, after) in list(progress.measures.items())[:1]:
        said.append(f"{name} {before:.3f} → {after:.3f}." if before != after else f"{name} {after:.3f}.")
    if progress.verdict:
        said.append(f"Proof: {progress.verdict}.")
    return " ".join(said)


def _evaluated(look: Look, progress: RunProgress) -> str:
    said = look.summary.state.summary
    if "base_loss" not in said or "tuned_loss" not in said:
        return ""
    pair = f"{number(float(said['base_loss']))} → {number(float(said['tuned_loss']))}"
    rest = "".join(f", {name} {values}" for name, values in measured_pairs(said).items())
    return f"Base → tuned: loss {pair}{rest}, on {said.get('rows', '?')} rows."


def _exported(look: Look, progress: RunProgress) -> str:
    count = sum(kind != "smoke" for kind, _ in progress.exports)
    verdict = look.summary.state.summary.get("verdict")
    return f"{count} file(s) written; proof: {verdict or 'none asked for'}."


def _proven(look: Look, progress: RunProgress) -> str:
    return f"Proof: {look.summary.state.summary.get('verdict') or progress.verdict or 'none'}."


def _next(look: Look) -> tuple[str, ...]:
    if look.summary.state.method == "smoke":
        return ("7 shows each proof.",)
    if look.summary.state.is_job:
        return ("7 shows files and proofs, 5 the answers · c chat",)
    if look.summary.state.method not in api.LANGUAGE_MODELS:
        return ("e export · 7 files",)
    return ("c chat, base beside tuned · e export · v measure on held-out rows",)


def _place(progress: RunProgress) -> str:
    if not progress.checkpoints:
        return "from the beginning (no checkpoint yet)"
    return f"from step {max(progress.checkpoints)}"


def _goes_on(progress: RunProgress) -> str:
    return f"r resumes {_place(progress)} · l shows the log"


def run_advice(look: Look | None, progress: RunProgress, findings: Sequence[api.Finding]) -> list[Advice]:
    """At most what is urgent, then what comes next."""
    if look is None:
        return [Advice("Reading the run …")]
    status = look.summary.status
    said: list[Advice] = []
    worst = next((one for one in findings if one.severity == "error"), None) or next(
        (one for one in findings if one.severity == "warning"), None
    )
    if progress.curves.not_finite and look.active:
        first = progress.curves.not_finite[0]
        said.append(Advice(f"The loss is no number since step {first}: stop it.", "x", "error"))
    if worst is not None:
        mends = " a applies its fix." if worst.fix and worst.fix.patch else ""
        said.append(Advice(f"{worst.id}: {worst.title}{mends}", "6", worst.severity))
    said += _state_advice(look, progress, status)
    return said


def _state_advice(look: Look, progress: RunProgress, status: str) -> list[Advice]:
    if status == "running":
        if progress.last is None:
            return [Advice("It runs in a process of its own: quitting or a lost connection ends nothing.")]
        left = seconds_left(look, progress)
        if left is None:
            return [
                Advice("Training is done; what follows needs nobody. Quit any time."),
                *_fresh_answers(progress),
            ]
        said = Advice(f"About {clock(left)} left. Quit any time; it goes on, and opening it again is enough.")
        return [said, *_fresh_answers(progress), *_metrics(progress)]
    if status in ("queued", "waiting"):
        return [Advice("It starts by itself as soon as it can: nothing to do, quit any time.")]
    if status == "finished" and look.summary.state.is_job:
        talk = [Advice("Talk to it, base beside tuned.", "c")] if look.summary.state.parent else []
        return [Advice("What it made and proved stands there.", "7"), *talk]
    if status in RESUMABLE:
        return [Advice(f"It can go on {_place(progress)}.", "r", "warning")]
    if status == "finished" and not look.summary.state.is_job:
        if look.summary.state.method not in api.LANGUAGE_MODELS:
            return [Advice("Export it, with the proof.", "e"), *_metrics(progress)]
        return [
            Advice("Talk to it, base beside tuned.", "c"),
            Advice("Export it to GGUF, with the proof.", "e"),
        ]
    return []


def _metrics(progress: RunProgress) -> list[Advice]:
    names = [plain(name, 30) for name in progress.measures]
    return [Advice(f"{', '.join(names[:3])} as curves in place of the loss.", "o")] if names else []


def _fresh_answers(progress: RunProgress) -> list[Advice]:
    steps = progress.sampled_steps
    if len(steps) < 2:
        return []
    return [Advice(f"New answers at step {steps[-1]}, beside those of the base model.", "5")]
