"""Run directories: one per run under ``$WHET_HOME/runs``, written by one worker and read by everyone else.

``state.json`` is written only by who holds the run's lock (the launcher, then the worker it hands the lock
to). A state that claims to be active while the lock is free is a worker that died: ``interrupted``, and
resumable.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ..errors import WhetError
from ..settings import settings
from .control import Control
from .failures import readable_disk_errors
from .files import private_dir, private_file, write_atomic
from .locks import is_held
from .log import read_log
from .state import ACTIVE, RunError, RunState, RunSummary, Status

if TYPE_CHECKING:
    from ..plan import Plan
    from .jobs import Job

Summaries = list[RunSummary]  # the name `list` means a method inside RunStore


@dataclass(frozen=True)
class RunDir:
    """The paths of one run, and the few things that are read and written as a whole."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @cached_property
    def control(self) -> Control:
        return Control(self.path / "control")

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def log(self) -> Path:
        return self.path / "worker.log"

    @property
    def remote_code(self) -> Path:
        """The model's own code that whoever started the run allowed to run; there only where it was."""
        return self.path / "remote_code"

    def allowed_code(self) -> frozenset[str]:
        """What :attr:`remote_code` names; empty without it."""
        if not self.remote_code.is_file():
            return frozenset()
        return frozenset(self.remote_code.read_text(encoding="utf-8").splitlines())

    @property
    def reserve(self) -> Path:
        """Space a worker holds back, freed so that a run on a full disk can still write why it failed."""
        return self.path / ".reserve"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def export_lock(self) -> Path:
        """Held by who writes into ``export/``."""
        return self.path / "export.lock"

    @property
    def job(self) -> Path:
        return self.path / "job.json"

    @property
    def jobs(self) -> Path:
        """An empty file for each job on this run, called by the job's id."""
        return self.path / "jobs"

    def alive(self) -> bool:
        """Whether a worker (or the launcher about to start one) holds the run's lock."""
        return is_held(self.lock)

    def read_state(self) -> RunState:
        """The state as last written. Raises WhetError ``run.unreadable`` for a missing or broken file."""
        try:
            return RunState.model_validate_json(self.state.read_bytes())
        except (OSError, ValidationError) as error:
            raise WhetError(
                "run.unreadable",
                f"{self.state} cannot be read: {_first_line(error)}.",
                f"Checkpoints and exports in {self.path} are untouched; remove the folder if not needed.",
            ) from error

    def write_state(self, **changes: Any) -> RunState:
        """Change some fields of the state, atomically and fsynced. Only for who holds the run's lock."""
        known = self.read_state() if self.state.exists() else RunState()
        values = known.model_dump() | {"updated": time.time()} | changes
        state = RunState.model_validate(values)
        write_atomic(self.state, state.model_dump_json(indent=2).encode() + b"\n")
        return state

    def status(self) -> Status:
        """The truth about the run: its state, or ``interrupted`` when that claims a worker and none lives."""
        was_alive = self.alive()  # before the state: what a worker wrote last is then never missed
        state = self.read_state()
        launched = state.status in ACTIVE and state.launched is not None
        if launched and not was_alive and not self.alive():
            return "interrupted"
        return state.status

    def write_plan(self, plan: Plan) -> None:
        """Write ``plan.json``, and ``recipe.yaml`` with every value: later defaults change nothing."""
        import yaml

        recipe = plan.recipe.model_dump(mode="json", exclude_none=True)
        write_atomic(self.recipe, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).encode())
        write_atomic(self.plan, plan.model_dump_json(indent=2).encode() + b"\n")

    def load_plan(self) -> Plan:
        """The plan the run was started from; of a job its parent's. Rules that are newer do not hold for it.

        Raises WhetError ``run.no_plan`` for a job on files that no run made, ``run.plan_unreadable``.
        """
        from ..plan import Plan
        from ..recipe_rules import STORED

        if self.job.exists() and not self.plan.exists():
            raise WhetError("run.no_plan", f"Run {self.id} has no plan: it trains nothing.")
        try:
            return Plan.model_validate_json(self.plan.read_bytes(), context=STORED)
        except (OSError, ValidationError) as error:
            raise WhetError(
                "run.plan_unreadable",
                f"{self.plan} cannot be read: {_first_problem(error)}.",
                "Another version of whet wrote it, or it changed since. Nothing is lost: go on with that "
                f"version, or start a new run from {self.recipe}.",
            ) from error

    def load_job(self) -> Job | None:
        """What its worker does instead of training; None for a run that trains."""
        if not self.job.exists():
            return None
        from .jobs import JOB

        try:
            return JOB.validate_json(self.job.read_bytes())
        except (OSError, ValidationError) as error:
            raise WhetError(
                "run.unreadable",
                f"{self.job} cannot be read: {_first_problem(error)}.",
                "Start the job again from the run that it worked on.",
            ) from error

    def list_jobs(self) -> Summaries:
        """The jobs on this run that still have a directory, newest first."""
        if not self.jobs.is_dir():
            return []
        found = [RunDir(self.path.parent / mark.name) for mark in self.jobs.iterdir()]
        return newest_first([job.summary() for job in found if job.path.is_dir()])

    def log_tail(self, lines: int = 20) -> list[str]:
        """The last lines of worker.log, where libraries talk and tracebacks go."""
        return read_log(self.log, lines).lines

    def summary(self) -> RunSummary:
        """What ``whet runs`` shows; a broken state is ``unreadable``, so that it hides no other run."""
        try:
            status, state = self.status(), self.read_state()
        except WhetError as error:
            status, state = "unreadable", RunState(error=RunError(**error.as_dict()))
        return RunSummary(id=self.id, path=str(self.path), status=status, state=state)


class RunStore:
    """The folder of all runs, by default ``$WHET_HOME/runs``."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else settings().runs

    def create(
        self, plan: Plan, started_by: str, run_id: str | None = None, remote_code: str | None = None
    ) -> RunDir:
        """A new run from a plan: a complete directory appears at once, or none.

        ``run_id`` is one that :func:`new_id` gave for it, of which a died process may have left parts.
        ``remote_code`` is the model's own code that may run, as :func:`.models.own_code.own_code` names it.
        Raises WhetError ``run.disk_full`` or ``run.not_writable``.
        """
        recipe = plan.recipe
        state = RunState(started_by=started_by, model=recipe.model.name, method=recipe.method.kind)

        def fill(run: RunDir) -> None:
            run.write_plan(plan)
            if remote_code is not None:
                write_atomic(run.remote_code, f"{remote_code}\n".encode())

        return self._appear(run_id or new_id(plan), state, fill)

    def create_job(self, job: Job, started_by: str, run_id: str | None = None) -> RunDir:
        """A new run that does ``job``, with the parent's recipe and plan.

        Raises WhetError ``run.unknown`` for the parent, ``run.disk_full``, ``run.not_writable``.
        """
        run_id = run_id or new_job_id(job)
        parent = self.get(job.parent) if job.parent is not None else None
        state = RunState(started_by=started_by, method=job.action, parent=job.parent)

        def fill(run: RunDir) -> None:
            write_atomic(run.job, job.model_dump_json(indent=2).encode() + b"\n")
            if parent is not None:
                write_atomic(run.recipe, parent.recipe.read_bytes())
                write_atomic(run.plan, parent.plan.read_bytes())
                if parent.remote_code.is_file():
                    write_atomic(run.remote_code, parent.remote_code.read_bytes())
                # Before the job itself, so that none is missed; a mark without its job counts for nothing.
                os.close(private_file(private_dir(parent.jobs) / run_id, os.O_WRONLY))

        if parent is not None:
            state = state.model_copy(update={"model": parent.read_state().model})
        return self._appear(run_id, state, fill)

    def _appear(self, run_id: str, state: RunState, fill: Callable[[RunDir], None]) -> RunDir:
        """The directory of a run, filled and then renamed."""
        now = time.time()
        state = state.model_copy(update={"created": now, "updated": now})
        with readable_disk_errors(self.root):
            building = RunDir(private_dir(self.root) / f".{run_id}.new")
            shutil.rmtree(building.path, ignore_errors=True)
            building.path.mkdir(mode=0o700)
            try:
                fill(building)
                write_atomic(building.state, state.model_dump_json(indent=2).encode() + b"\n")
                for folder in (building.control.directory, building.checkpoints, building.export):
                    folder.mkdir(mode=0o700)
                run = RunDir(self.root / run_id)
                os.rename(building.path, run.path)
            except OSError:
                shutil.rmtree(building.path)
                raise
        return run

    def get(self, id_or_prefix: str) -> RunDir:
        """A run by its id or by a prefix that only it has.

        Raises WhetError ``run.unknown`` naming the last five runs, ``run.ambiguous`` naming the candidates.
        """
        ids = [run.id for run in self]
        matches = [id for id in ids if id == id_or_prefix] or [
            id for id in ids if id.startswith(id_or_prefix)
        ]
        if len(matches) == 1:
            return RunDir(self.root / matches[0])
        if not matches:
            last = [summary.id for summary in self.list()[:5]]
            hint = (
                f"The last runs are: {', '.join(last)}." if last else f"There are no runs in {self.root} yet."
            )
            raise WhetError("run.unknown", f"No run is called {id_or_prefix!r}.", hint)
        raise WhetError(
            "run.ambiguous",
            f"{id_or_prefix!r} fits {len(matches)} runs: {', '.join(sorted(matches)[-5:])}.",
            "Give more of the id.",
        )

    def list(self) -> Summaries:
        """All runs, newest first."""
        return newest_first([run.summary() for run in self])

    def __iter__(self) -> Iterator[RunDir]:
        """All run directories, in no particular order; half-made ones have a leading dot and do not count."""
        if not self.root.is_dir():
            return
        with os.scandir(self.root) as entries:
            for entry in entries:
                if entry.is_dir() and not entry.name.startswith("."):
                    yield RunDir(Path(entry.path))


def newest_first(summaries: Summaries) -> Summaries:
    """By the time of creation."""
    return sorted(summaries, key=lambda summary: (summary.state.created, summary.id), reverse=True)


def new_id(plan: Plan) -> str:
    """A sortable, typable id: name, local time, and four hex digits against a tie."""
    return _dated(plan.recipe.name or Path(plan.recipe.model.name).name)


def new_job_id(job: Job) -> str:
    """The same of a job."""
    return _dated(f"{job.action}-{job.subject}")


def _dated(name: str) -> str:
    word = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:40] or "run"
    return f"{word}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def trained_weights(run: RunDir) -> Path:
    """The adapter or the whole model that a run trained. Raises WhetError ``export.untrained``."""
    for name in ("adapter", "model"):
        if (run.export / name).is_dir():
            return run.export / name
    raise WhetError(
        "export.untrained",
        f"Run {run.id} is {run.status()} and has no finished weights in {run.export}.",
        f"Wait for it (`whet attach {run.id}`), or go on with it: `whet resume {run.id}`.",
    )


def _first_problem(error: Exception) -> str:
    """What is wrong first, and where: of a setting its dotted name."""
    if not isinstance(error, ValidationError):
        return _first_line(error)
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    said = first["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{where}: {said}" if where else said


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
