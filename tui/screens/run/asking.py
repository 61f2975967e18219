"""What is asked of a run: the words of the question before it, and the same request in other forms."""

from __future__ import annotations

from whet.engine import api

from ...actions import Action, chat_action, export_action, mcp_call
from ...run_state import RunProgress
from .look import RESUMABLE, Look


def stop_words(look: Look, progress: RunProgress, *, pausing: bool) -> tuple[str, str]:
    """The question before a stop, and the words that agree."""
    if look.asked is not None:
        lost = ""
        if progress.last is not None:
            saved = max(progress.checkpoints, default=0)
            steps = progress.last.step - saved
            lost = f" What came since the last checkpoint ({steps} steps) is lost." if steps > 0 else ""
        return (
            f"It was asked to stop already. End it at once, in the middle of its step?{lost}",
            "End at once",
        )
    if look.summary.state.is_job:
        return "Stop this job? It ends at the next moment it can; resumed, it starts over.", "Stop"
    if look.summary.status == "waiting":
        return "Withdraw this run? It gives up its place in line; r queues it again.", "Withdraw"
    if pausing:
        return (
            "Pause? Pausing is a stop that can be resumed: the run finishes this step, writes a checkpoint, "
            "ends its process and frees the GPU. r goes on from there, as if it had never paused.",
            "Pause",
        )
    return (
        "Stop? It finishes this step, writes a checkpoint and ends. Nothing is lost, and r would go on from "
        "there. Asked a second time, it ends at once.",
        "Stop",
    )


def ask_to_stop(run_id: str, again: bool) -> api.StopRequest:
    """Ask once, or ``again`` for the end at once. Raises WhetError ``run.not_running``.

    The engine takes a second request for that, whoever made the first; the question was about the first.
    """
    asked = api.find(run_id).control.stop_requested()
    if asked is not None and not again:
        return asked
    return api.stop(run_id, now=again)


def run_actions(
    run_id: str, look: Look | None, finding: api.Finding | None, recipe: str = ""
) -> list[Action]:
    """The likeliest first; ``recipe``: the YAML that the run was planned from."""
    shown = Action(
        "look at the run",
        f"whet show {run_id}",
        recipe,
        python=f'api.run("{run_id}")',
        mcp=mcp_call("run_get", run_id=run_id),
    )
    followed = Action(
        "follow it",
        f"whet attach {run_id}",
        python=f'for event in api.follow("{run_id}"):\n    print(event)',
        mcp=mcp_call("job_wait", run_id=run_id),
    )
    stopped = Action(
        "stop it",
        f"whet stop {run_id}",
        python=f'api.stop("{run_id}")',
        mcp=mcp_call("job_stop", run_id=run_id, mode="checkpoint"),
    )
    resumed = Action(
        "resume it",
        f"whet resume {run_id}",
        python=f'api.resume("{run_id}")',
        mcp=mcp_call("run_resume", run_id=run_id),
    )
    saved = Action("write a checkpoint", python=f'api.request_checkpoint("{run_id}")')
    said = [shown, followed]
    if look is not None and look.active:
        said = [followed, stopped, saved, shown]
    elif look is not None and look.summary.status in RESUMABLE:
        said = [resumed, shown]
    elif look is not None and not look.summary.state.is_job:
        said = [
            shown,
            chat_action(run_id, "Hello"),
            export_action(run_id, ["q4_k_m"], False),
            _measure(run_id),
        ]
    return [*said, *([_fix(run_id, finding)] if finding is not None else [])]


def _measure(run_id: str) -> Action:
    return Action(
        "measure base and tuned",
        f"whet eval {run_id}",
        python=f'api.start_evaluation("{run_id}", started_by="python")',
        mcp=mcp_call("eval_run", run_id=run_id),
    )


def _fix(run_id: str, finding: api.Finding) -> Action:
    patch = finding.fix.patch if finding.fix else {}
    if not patch:
        command = finding.fix.command if finding.fix else None
        return Action(f"{finding.id}", command or f"whet explain {finding.id}")
    yaml = ""
    for key, value in patch.items():
        yaml = api.set_key(yaml, key, value)
    return Action(
        f"apply the fix of {finding.id}",
        f"whet fix {run_id} {finding.id} -o fixed.yaml",
        yaml=yaml,
        python=f'api.fix("{run_id}", ["{finding.id}"])',
        mcp=mcp_call("run_diagnose", run_id=run_id),
    )
