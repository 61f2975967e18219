"""What Home's title and assistant bar say, from facts alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .widgets.assistant_bar import Advice

if TYPE_CHECKING:
    from whet.engine.api import Machine, RunSummary

GIB = 1 << 30
LITTLE_DISK = 10 * GIB
RESUMABLE = ("interrupted", "stopped")


def _gpus(machine: Machine, name: str) -> str:
    """GPUs of one name: how many, and what is free of all of them."""
    alike = [gpu for gpu in machine.gpus if gpu.name == name]
    free, total = sum(gpu.memory_free for gpu in alike), sum(gpu.memory_total for gpu in alike)
    many = f"{len(alike)} × " if len(alike) > 1 else ""
    return f"{many}{name} {free / GIB:.0f}/{total / GIB:.0f} GiB"


def machine_line(machine: Machine, hub: str) -> str:
    """GPUs (those of one name together) and disk with what is free, the hub's login, memory, cores."""
    names = dict.fromkeys(gpu.name for gpu in machine.gpus)
    gpus = [_gpus(machine, name) for name in names]
    words = gpus or ["no GPU"]
    words += [
        f"{machine.disk_free / GIB:.0f} GiB disk free",
        f"hub: {hub}",
        f"{machine.ram_available / GIB:.0f}/{machine.ram_total / GIB:.0f} GiB memory",
        f"{machine.cpu_count} cores",
    ]
    return " · ".join(words)


def home_advice(
    runs: Sequence[RunSummary] | None, machine: Machine | None, drafts: Sequence[str]
) -> list[Advice]:
    """Most urgent first: a full disk, a run that failed or can go on, one that runs, a draft, first steps."""
    if runs is None:
        return [Advice("Reading runs …")]
    advice = []
    if machine is not None and machine.disk_free < LITTLE_DISK:
        free = machine.disk_free / GIB
        advice.append(Advice(f"Only {free:.1f} GiB of disk are free for checkpoints.", "d", "warning"))
    advice += [one for run in runs[:5] if (one := _about(run)) is not None]
    if drafts:
        advice.append(
            Advice(f"{len(drafts)} draft(s) wait to be finished: the list beside the runs has them.")
        )
    if not runs:
        advice.append(Advice("No run yet. The demo goes from data to a proven GGUF in about a minute.", "x"))
        advice.append(Advice("Have a file of chats? whet finds the settings and says why.", "n"))
    elif not advice:
        from whet.engine import api  # the first screen is painted before the engine is there

        done = next((run for run in runs if not run.state.is_job), runs[0])
        if done.state.is_job or done.state.method in api.LANGUAGE_MODELS:
            advice.append(Advice(f"{done.id} is done: talk to it, base beside tuned.", "c"))
            advice.append(Advice("Or export it.", "e"))
        else:
            advice.append(Advice(f"{done.id} is done: export it.", "e"))
    return advice


def _about(run: RunSummary) -> Advice | None:
    state = run.state
    if run.status == "failed":
        code = state.error.code if state.error else "no reason given"
        return Advice(f"{run.id} failed ({code}); open it to see why and what helps.", "enter", "error")
    if run.status in RESUMABLE:
        return Advice(f"{run.id} is {run.status} at step {state.step}; open it to go on.", "enter", "warning")
    if run.status == "waiting":
        behind = f" behind {', '.join(state.behind)}" if state.behind else ""
        return Advice(f"{run.id} waits for a GPU{behind}.", "enter")
    if run.status == "running":
        return Advice(f"{run.id} runs: step {state.step} of {state.total_steps or '?'}.", "enter")
    return None
