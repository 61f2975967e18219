"""From a recipe's method, or a job, to its code. Imported by the worker only: it brings torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module

from ..runs.context import RunContext
from ..runs.jobs import EvaluateJob, ExportJob, SmokeJob

METHODS = {
    "sft": (".sft.job", "run_sft"),
    "embedding": (".embedding.job", "run_embedding"),
    "classification": (".classification.job", "run_classification"),
    "token_classification": (".token_classification.job", "run_token_classification"),
    "reranker": (".reranker.job", "run_reranker"),
    "preference": (".preference.job", "run_preference"),
    "reward": (".reward.job", "run_reward"),
    "grpo": (".grpo.job", "run_grpo"),
    "speech": (".speech.job", "run_speech"),
    "tts": (".tts.job", "run_tts"),
    "vision": (".vision.job", "run_vision"),
}
"""Method -> where its job is; only that one is imported."""


def run_job(context: RunContext) -> None:
    """Do the whole job of a run, from loading to proven exports; resumes from the last finished checkpoint.

    A run with a ``job.json`` does that instead, and starts over when it is resumed.

    Raises:
        Stopped: the run ended on request.
        WhetError: with a code that says what a person can do.
    """
    job_of(context)(context)


def job_of(context: RunContext) -> Callable[[RunContext], None]:
    """What :func:`run_job` calls, all that it needs imported.

    Raises:
        WhetError: for a ``job.json`` that is none.
    """
    job = context.dir.load_job()
    if isinstance(job, ExportJob | SmokeJob):
        from ..export.job import run_export_job, run_smoke_job

        if isinstance(job, ExportJob):
            return partial(run_export_job, job=job)
        return partial(run_smoke_job, job=job)
    kind = context.recipe.method.kind
    if isinstance(job, EvaluateJob) and kind == "sft":
        from .sft.evaluation import evaluate_run

        return partial(evaluate_run, job=job)
    module, function = METHODS[kind]
    method: Callable[[RunContext], None] = getattr(import_module(module, __package__), function)
    return method
