"""Export and smoke test as jobs in a worker: stoppable between events, started over when resumed."""

from __future__ import annotations

from typing import Any

from ..runs.context import RunContext
from ..runs.jobs import ExportJob, SmokeJob
from ..runs.store import RunStore
from .export_process import smoke
from .held_out import planned_rows
from .of_run import export_finished, stoppable


def run_export_job(context: RunContext, job: ExportJob) -> None:
    """Write into the parent's ``export/``; files and verdict also end in the job's summary.

    Raises Stopped on request, WhetError of :func:`.pipeline.export_finished`.
    """
    assert job.parent is not None
    parent = RunStore(context.dir.path.parent).get(job.parent)
    result = export_finished(
        parent,
        context.plan,
        parent.read_state().summary,
        stoppable(context),
        job.section,
        leave=context.leave_if_asked,
    )
    context.summary["export"] = {kind: str(path) for kind, path in result.paths.items()}
    if result.status is not None:
        context.summary["verdict"] = result.status


def run_smoke_job(context: RunContext, job: SmokeJob) -> None:
    """Prove one file, a run's own with rows that it held out; the verdict also lies beside it.

    Raises as :func:`run_export_job`.
    """
    request: dict[str, Any] = {"gguf": str(job.gguf), "reference": str(job.reference)}
    if job.parent is not None:
        request["held_out"] = planned_rows(context.plan, context.plan.model.path)
    context.summary["verdict"] = smoke(request, stoppable(context))
