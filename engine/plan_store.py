"""Plans that are kept by their id, so that who agreed to one can start exactly it later, from anywhere."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from .errors import WhetError
from .plan import Plan
from .runs import locks
from .runs.failures import readable_disk_errors
from .runs.files import private_dir, write_atomic
from .settings import settings

KEPT = 200
"""Newest plans that are kept."""
NAMED = 5
LOCK_SECONDS = 10.0


def keep_plan(plan: Plan) -> str:
    """Keep a plan under ``$WHET_HOME/plans``; returns its id. The same plan again is the newest again.

    Raises WhetError ``run.disk_full``, ``run.not_writable``, ``lock.held``.
    """
    folder = _folder()
    with readable_disk_errors(folder):
        private_dir(folder)
        with locks.hold(folder / ".lock", LOCK_SECONDS):
            write_atomic(folder / f"{plan.id}.json", plan.model_dump_json().encode() + b"\n")
            for old in _newest_first(folder)[KEPT:]:
                old.unlink()
    return plan.id


def kept_plan(plan_id: str) -> Plan:
    """A kept plan, by its id or a beginning that only it has.

    Raises WhetError ``plan.unknown`` naming the last five, ``plan.ambiguous`` naming the candidates,
    ``plan.unreadable``.
    """
    kept = _newest_first(_folder())
    fitting = [path for path in kept if plan_id and path.stem.startswith(plan_id)]
    if not fitting:
        last = ", ".join(path.stem for path in kept[:NAMED])
        raise WhetError(
            "plan.unknown",
            f"No kept plan is called {plan_id!r}.",
            f"The last plans are: {last}." if last else "No plan is kept yet: make one first.",
        )
    if len(fitting) > 1:
        names = ", ".join(path.stem for path in fitting[:NAMED])
        raise WhetError(
            "plan.ambiguous", f"{plan_id!r} fits {len(fitting)} plans: {names}.", "Give more of the id."
        )
    try:
        return Plan.model_validate_json(fitting[0].read_bytes())
    except (OSError, ValidationError) as error:
        raise WhetError(
            "plan.unreadable",
            f"{fitting[0]} cannot be read: {str(error).splitlines()[0]}.",
            "It was probably kept by another version of whet. Plan again.",
        ) from error


def _folder() -> Path:
    return settings().home / "plans"


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
