"""Runs: started, followed, stopped, thrown away; all from their directories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import WhetError
from ..runs import supervisor
from ..runs.control import StopRequest
from ..runs.events import Event, read_events
from ..runs.keys import start_once
from ..runs.log import LogPage, read_log
from ..runs.state import RunSummary
from ..runs.store import RunDir, RunStore, new_id

if TYPE_CHECKING:
    from ..plan import Plan
    from ..run_view import RunView

LAST = "last"


def model_code(agreed: Plan) -> str | None:
    """What of a plan's model a person may allow to run, ``owner/name@commit``; None: it brings no code."""
    from ..models.own_code import own_code

    return own_code(agreed.model.name, agreed.model.path)


def start(
    agreed: Plan, started_by: str, key: str | None = None, remote_code: frozenset[str] = frozenset()
) -> str:
    """Start a run from a plan, detached from this process; returns its id.

    ``remote_code`` names the models whose own Python code may run, as :func:`model_code` does: the word of a
    person or an operator, never of a recipe or a tool call.

    The same ``key`` (1 to 200 characters of the caller's choice) starts one run only, from whatever process
    and after whatever crash. Raises WhetError ``plan.blocked`` when the plan holds errors the recipe does not
    accept, ``run.machines`` when it is for several machines, ``run.key_reused`` when the key started another
    plan.
    """
    _refuse_blocked(agreed)
    if agreed.recipe.hardware.machines > 1:
        raise _for_machines(agreed.recipe.hardware.machines, "`whet train RECIPE --no-start` makes the run")

    def create(run_id: str) -> RunDir:
        return _create(agreed, started_by, remote_code, run_id)

    return start_once(key, f"plan {agreed.id}", new_id(agreed), create).id


def prepare(agreed: Plan, started_by: str, remote_code: frozenset[str] = frozenset()) -> str:
    """Make a run from a plan and leave its start to others: torchrun, srun, a cluster; returns its id.

    Its worker is ``python -P -m whet.engine.runs.worker FOLDER``, once, or a process for each rank. Raises
    WhetError ``plan.blocked`` as :func:`start` does.
    """
    _refuse_blocked(agreed)
    return _create(agreed, started_by, remote_code, new_id(agreed)).id


def _refuse_blocked(agreed: Plan) -> None:
    blocked = agreed.blocked()
    if blocked:
        ids = ", ".join(sorted({finding.id for finding in blocked}))
        raise WhetError(
            "plan.blocked",
            f"{len(blocked)} finding(s) block the start: {ids}.",
            f"Apply their fixes, or accept them by name: accept='[{ids}]'",
        )


def _create(agreed: Plan, started_by: str, remote_code: frozenset[str], run_id: str) -> RunDir:
    code = model_code(agreed) if remote_code else None
    return RunStore().create(agreed, started_by, run_id, code if code in remote_code else None)


def runs() -> list[RunSummary]:
    """All runs, newest first."""
    return RunStore().list()


def find(run_id: str) -> RunDir:
    """The directory of a run, by id, unique beginning, or ``last``: the newest that trains."""
    if run_id == LAST:
        newest = [one for one in runs() if not one.state.is_job][:1]
        if not newest:
            raise WhetError("run.none", "There is no run yet.", "Start one: whet demo")
        run_id = newest[0].id
    return RunStore().get(run_id)


def find_trained(run_id: str) -> RunDir:
    """The run whose weights are meant: of a job its parent."""
    found = find(run_id)
    parent = found.read_state().parent
    return found if parent is None else RunStore().get(parent)


def run(run_id: str) -> RunView:
    """All that is known of one run."""
    from ..run_view import view_run

    return view_run(find(run_id))


def follow(run_id: str, offset: int = 0) -> Iterator[Event]:
    """Events of a run from byte ``offset`` on, as they come, until its worker has ended."""
    return supervisor.follow(find(run_id), offset)


def events(run_id: str, offset: int = 0, most: int = -1) -> tuple[list[Event], int]:
    """Events of a run so far from byte ``offset`` on, and the offset to go on from; does not wait.

    ``most`` are the bytes to read at once, by default all there are; a begun line is read to its end.
    """
    return read_events(find(run_id).events, offset, most)


def stop(run_id: str, now: bool = False) -> StopRequest:
    """Ask a run to finish its step, checkpoint and end; asked twice, or ``now``, it ends at once.

    Returns what was asked. Raises WhetError ``run.not_running`` when no worker is there to hear it.
    """
    return supervisor.stop(find(run_id), now=now)


def request_checkpoint(run_id: str) -> None:
    """Ask a run for a checkpoint after its step; it goes on. Raises WhetError ``run.not_running``."""
    supervisor.request_checkpoint(find(run_id))


def log(run_id: str, lines: int = 100, before: int | None = None, search: str = "") -> LogPage:
    """The last ``lines`` lines of a worker's log, or those before byte ``before``, that contain ``search``.

    Give a page's ``start`` as ``before`` for the page above it. Raises WhetError ``log.range``.
    """
    return read_log(find(run_id).log, lines, before, search)


def resume(run_id: str, overrides: Sequence[str] = ()) -> str:
    """Go on from the last finished checkpoint, detached; returns the run's id.

    ``overrides`` may lengthen or shorten the run, or change evaluation and export; model, data and adapter
    stay as they are. Raises WhetError ``run.machines`` for a run on several machines, and those of the start.
    """
    found = find(run_id)
    if not found.job.exists() and not any(text.startswith("hardware.machines=") for text in overrides):
        machines = found.load_plan().recipe.hardware.machines
        if machines > 1:
            alone = f"`whet resume {found.id} hardware.machines=1 hardware.gpus=auto` goes on with this one"
            raise _for_machines(machines, alone)
    supervisor.resume(found, overrides)
    return found.id


def _for_machines(machines: int, instead: str) -> WhetError:
    return WhetError(
        "run.machines",
        f"The run is for {machines} machines (hardware.machines); whet starts processes on this one only.",
        f"Let torchrun, srun or an operator start its worker on all of them, see docs/deploy; {instead}.",
    )


def trash(run_id: str) -> str:
    """Throw a run away until :func:`restore`; returns its id. Raises WhetError ``run.alive``."""
    from ..runs.trash import trash as throw

    found = find(run_id)
    throw(found)
    return found.id


def restore(run_id: str) -> str:
    """Bring back what :func:`trash` threw away. Raises WhetError ``run.not_in_trash``."""
    from ..runs.trash import restore as bring_back

    return bring_back(run_id).id
