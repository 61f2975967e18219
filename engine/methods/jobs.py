"""From a recipe's method to the code that does it. Imported by the worker only: it brings torch."""

from __future__ import annotations

from ..runs.context import RunContext


def run_job(context: RunContext) -> None:
    """Do the whole job of a run, from loading to proven exports; resumes from the last finished checkpoint.

    Raises:
        Stopped: the run ended on request.
        WhetError: with a code that says what a person can do.
    """
    from .sft.job import run_sft

    jobs = {"sft": run_sft}
    jobs[context.recipe.method.kind](context)
