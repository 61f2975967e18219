"""Start a job on a run's trained weights; what cannot work is refused before anything is started. Light."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import WhetError
from .export.gguf.types import check_types
from .export.targets.memory import DEFAULT_SHARE, check_share
from .export.targets.table import TARGETS
from .hardware import inspect_machine
from .methods.kinds import LANGUAGE_MODELS
from .parallel.evaluation import refuse_too_large
from .recipe import ExportSection
from .runs.jobs import EvaluateJob, ExportJob, Job, SmokeJob
from .runs.keys import start_once
from .runs.store import RunDir, RunStore, new_job_id, trained_weights


def start_export(
    parent: RunDir,
    types: Sequence[str],
    merged: bool,
    smoke: bool,
    started_by: str,
    key: str | None,
    imatrix: str | None = None,
    memory: float | None = None,
) -> str:
    """Raises WhetError ``export.memory_share``, ``gguf.unknown_type`` and ``export.untrained`` beside those
    of :func:`start_job`."""
    trained_weights(parent)
    section = None
    if types or merged:
        section = export_section(types, merged, smoke, imatrix, memory)
    return start_job(ExportJob(parent=parent.id, section=section), started_by, key)


def start_evaluation(
    parent: RunDir,
    data: str | None,
    max_rows: int | None,
    prompts: Sequence[str],
    started_by: str,
    key: str | None,
) -> str:
    """Raises WhetError ``export.untrained``, ``eval.no_rows``, ``eval.max_rows``, ``eval.prompts``,
    ``eval.too_large``."""
    trained_weights(parent)
    plan = parent.load_plan()
    kind = plan.recipe.method.kind
    if prompts and kind not in (*LANGUAGE_MODELS, "vision"):
        raise WhetError(
            "eval.prompts",
            f"Run {parent.id} trained by method.kind={kind}: its model answers nothing.",
            f"Leave the prompts out, rows are measured by the method's own metrics: `whet eval {parent.id}`",
        )
    if max_rows is not None and max_rows < 1:
        raise WhetError("eval.max_rows", f"max_rows={max_rows} leaves no row.", "Give 1 or more.")
    if data is None and plan.data.eval is None:
        raise WhetError(
            "eval.no_rows",
            f"Run {parent.id} held no rows out.",
            f"Name rows it was not trained on: whet eval {parent.id} --data FILE",
        )
    refuse_too_large(parent.id, plan, inspect_machine())
    job = EvaluateJob(parent=parent.id, data=absolute_source(data), max_rows=max_rows, prompts=list(prompts))
    return start_job(job, started_by, key)


def export_section(
    types: Sequence[str], merged: bool, smoke: bool, imatrix: str | None, memory: float | None
) -> ExportSection:
    """What an export writes: ``types`` are GGUF types and targets (:data:`.export.targets.table.TARGETS`).

    Raises WhetError ``gguf.unknown_type``, ``export.memory_share``.
    """
    targets = {name: True for name in TARGETS if name in types}
    return ExportSection(
        merged=merged,
        gguf=[kind.name for kind in check_types([name for name in types if name not in targets])],
        imatrix=absolute_source(imatrix),
        smoke_test=smoke,
        maximum_memory_usage=check_share(DEFAULT_SHARE if memory is None else memory),
        **targets,
    )


def absolute_source(source: str | None) -> str | None:
    """A file or folder as a job finds it from wherever it runs; any other source as it is."""
    path = Path(source).expanduser() if source is not None else None
    return str(path.absolute()) if path is not None and path.exists() else source


def start_smoke(gguf: Path, reference: Path, started_by: str, key: str | None) -> str:
    """Raises WhetError ``smoke.no_gguf``, ``smoke.no_reference``."""
    gguf, reference = gguf.expanduser().absolute(), reference.expanduser().absolute()
    if not gguf.exists():
        raise WhetError("smoke.no_gguf", f"There is no GGUF file at {gguf}.", "Export one: whet export RUN")
    if not reference.is_dir():
        raise WhetError(
            "smoke.no_reference",
            f"There is no folder {reference}.",
            "Name the folder of the model, or of the adapter, that the file was made from.",
        )
    parents = [run.id for run in RunStore() if run.export in gguf.parents]
    job = SmokeJob(parent=parents[0] if parents else None, gguf=gguf, reference=reference)
    return start_job(job, started_by, key)


def start_job(job: Job, started_by: str, key: str | None) -> str:
    """Start it, detached; returns the id of its run. Raises what :func:`.runs.keys.start_once` does."""
    store = RunStore()

    def create(run_id: str) -> RunDir:
        return store.create_job(job, started_by, run_id)

    return start_once(key, f"job {job.model_dump_json()}", new_job_id(job), create).id
