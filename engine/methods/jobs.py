"""From a recipe's method, or a job, to its code. Imported by the worker only: it brings torch."""

from __future__ import annotations

from ..runs.context import RunContext
from ..runs.jobs import EvaluateJob, ExportJob, SmokeJob


def run_job(context: RunContext) -> None:
    """Do the whole job of a run, from loading to proven exports; resumes from the last finished checkpoint.

    A run with a ``job.json`` does that instead, and starts over when it is resumed.

    Raises:
        Stopped: the run ended on request.
        WhetError: with a code that says what a person can do.
    """
    job = context.dir.load_job()
    if isinstance(job, ExportJob | SmokeJob):
        from ..export.job import run_export_job, run_smoke_job

        run_export_job(context, job) if isinstance(job, ExportJob) else run_smoke_job(context, job)
        return
    if isinstance(job, EvaluateJob):
        from .sft.evaluation import evaluate_run

        evaluate_run(context, job)
        return
    from .sft.job import run_sft

    jobs = {"sft": run_sft}
    jobs[context.recipe.method.kind](context)
