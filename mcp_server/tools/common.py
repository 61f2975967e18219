"""What several tools share: ids that are checked, a run in words, lists in pages that fit a result."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from whet.engine import api

from ..results import call

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
KEY = re.compile(r"[a-z_0-9.]{1,80}")
ACTIVE = ("queued", "waiting", "running")
RESUMABLE = ("stopped", "failed", "interrupted")
PAGE = 4500
"""Characters of a page's entries as JSON: a result is not cut, so that its cursor leaves nothing out."""

Entry = TypeVar("Entry")


def known_run(run_id: str) -> api.RunDir:
    """A run by its id, a beginning that only it has, or ``last``; an id is no path.

    Raises WhetError ``run.unknown`` naming the last five, ``run.ambiguous``, ``run.none``.
    """
    if RUN_ID.fullmatch(run_id):
        return api.find(run_id)
    last = ", ".join(run.id for run in api.runs()[:5])
    raise api.WhetError(
        "run.unknown",
        f"{api.printable(run_id[:60])!r} is no run id.",
        f"The last runs are: {last}." if last else "There are no runs yet.",
    )


def overrides(changes: dict[str, Any] | None) -> list[str]:
    """Dotted keys and values as the engine's ``key=value``. Raises WhetError ``recipe.unknown_key``."""
    for key in changes or {}:
        if not KEY.fullmatch(key):
            raise api.WhetError(
                "recipe.unknown_key",
                f"{api.printable(key[:60])!r} is no recipe key.",
                'Dotted keys: changes={"training.max_steps": 60}',
            )
    return [f"{key}={json.dumps(value)}" for key, value in (changes or {}).items()]


def number(value: float | None, digits: int = 5) -> float | str | None:
    """Rounded to so many significant digits; what JSON lacks by name."""
    if value is None or math.isfinite(value):
        return None if value is None else float(f"{value:.{digits}g}")
    return str(value)


def standing(status: str, state: api.RunState) -> str:
    """Where a run stands, in words of whet's own."""
    if status == "waiting":
        behind = f" behind {', '.join(state.behind)}" if state.behind else ""
        return f"waiting{behind} for {', '.join(state.waiting_for) or 'a GPU'}"
    words = status if state.phase is None or status != "running" else f"running ({state.phase})"
    if state.total_steps:
        words += f", step {state.step} of {state.total_steps}"
    for name, value in (("loss", state.loss), ("held-out loss", state.eval_loss)):
        words += f", {name} {number(value, 4)}" if value is not None else ""
    return words


def follow_up(run: api.RunDir, status: str, state: api.RunState, since: str | None = None) -> list[str]:
    """The calls that make sense for a run that stands so."""
    if status in ACTIVE:
        return [call("job_wait", run_id=run.id, until="end", since=since)]
    if status in RESUMABLE:
        diagnose = call("run_diagnose", run_id=run.id)
        return [diagnose, call("run_resume", run_id=run.id)] if status != "unreadable" else [diagnose]
    if not state.is_job:
        exported = any(one.kind == "gguf" for one in api.artifacts(run.id))
        ship = call("export_start", run_id=run.id, types=[api.usual_target(state.method)])
        return [
            call("run_diagnose", run_id=run.id),
            call("gguf_smoke_test", run_id=run.id) if exported else ship,
            call("run_get", run_id=run.id, view="samples"),
        ]
    parent = state.parent
    if parent is None or state.method == "evaluate":
        return [call("run_get", run_id=run.id, view="summary")]
    return [call("gguf_smoke_test", run_id=parent), call("run_get", run_id=parent, view="artifacts")]


def fitting(entries: Sequence[Entry], limit: int) -> list[Entry]:
    """The first ``limit`` entries, or as many as fit a page; one at least."""
    kept: list[Entry] = []
    room = PAGE
    for entry in entries[:limit]:
        room -= len(json.dumps(entry, ensure_ascii=False, default=str)) + 1
        if kept and room < 0:
            break
        kept.append(entry)
    return kept


def place(cursor: str | None, largest: int) -> int:
    """The number a cursor holds, at most ``largest``. Raises WhetError ``call.cursor``."""
    if cursor is None:
        return 0
    if not cursor.isdecimal() or len(cursor) > 18:
        raise api.WhetError(
            "call.cursor",
            f"{api.printable(cursor[:40])!r} is no cursor.",
            "Give back the one a result held, or none to begin anew.",
        )
    return min(int(cursor), largest)
