"""The same key starts one run, however often, from however many processes, and whatever died in between.

What a key asked for, and the id its run has, is written before the run is made. Who comes again under the key
makes what is still missing, and starts what no worker ever took up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from ..errors import WhetError
from ..settings import settings
from . import locks, supervisor
from .failures import readable_disk_errors
from .files import private_dir, write_atomic
from .store import RunDir, RunStore

LONGEST = 200
LOCK_SECONDS = 30.0
"""How long to wait for another start under any key; one takes a fraction of a second."""

Create = Callable[[str], RunDir]


class Remembered(BaseModel):
    """What a key started."""

    model_config = ConfigDict(frozen=True)

    request: str
    run: str


def start_once(
    key: str | None,
    request: str,
    run_id: str,
    create: Create,
    launch: Callable[[RunDir], object] = supervisor.launch,
) -> RunDir:
    """Create and launch a run; under a ``key`` that was used before, find the run it started then.

    Args:
        key: any text the caller chose for this start; None starts a new run each time.
        request: names what is to be done, e.g. a plan's id.
        run_id: of the run, should it be a new one.
        create: makes the directory of the run that has the given id.
        launch: starts its worker.

    Raises:
        WhetError: ``run.key`` for one that is empty or too long, ``run.key_reused`` when it asked for
            something else before, those of ``create`` and ``launch``.
    """
    if key is None:
        run = create(run_id)
        launch(run)
        return run
    if not 0 < len(key) <= LONGEST:
        raise WhetError(
            "run.key", f"A key has 1 to {LONGEST} characters, this one {len(key)}.", "Use a UUID, say."
        )
    folder = settings().home / "keys"
    with readable_disk_errors(folder):
        private_dir(folder)
        record = folder / f"{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}.json"
        with locks.hold(folder / ".lock", LOCK_SECONDS):
            if record.exists():
                known = Remembered.model_validate_json(record.read_bytes())
                _same(key, known, request)
            else:
                known = Remembered(request=request, run=run_id)
                write_atomic(record, known.model_dump_json().encode() + b"\n")
            run = RunDir(RunStore().root / known.run)
            if not run.path.is_dir():
                run = create(known.run)
            if run.read_state().attempt == 0 and not run.alive():
                launch(run)
    return run


def _same(key: str, known: Remembered, request: str) -> None:
    if known.request != request:
        raise WhetError(
            "run.key_reused",
            f"The key {key!r} started run {known.run} from {known.request}, and now comes with {request}.",
            f"Use a new key for a new run, or look at that one: whet show {known.run}",
        )
