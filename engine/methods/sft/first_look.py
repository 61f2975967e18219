"""What there is to know about a loaded model before its first step, gathered for the checks of
:mod:`whet.engine.checks.loaded`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

from whet.kernels.rms_norm import rms_norm

from ...checks.live import Watch, Watched
from ...checks.loaded import LoadedFacts
from ...checks.weights import Files
from ...kernel_backends import runs_triton
from ...models.adapters import ties_ends
from ...models.facts import read_model_facts
from ...models.fast_path import causal_model
from ...models.loading import ModelHandle
from ...models.weight_facts import weight_facts
from ...plan import Plan
from ...recipe import Recipe
from ...runs.context import RunContext
from ...runs.events import EvalEvent, Event, StepEvent, last_attempt, read_events
from ..checkpoints import step_of
from ..random_numbers import preserved_rng
from .culprit import first_bad
from .self_tests import collated, short_rows
from .trainer import SupervisedTrainer

SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
ENDS = nn.Linear | nn.Embedding | ModulesToSaveWrapper


def loaded_facts(handle: ModelHandle, recipe: Recipe, **more: Any) -> LoadedFacts:
    """Of a model with its adapter.

    Args:
        handle: of :func:`whet.engine.models.loading.load_model`.
        recipe: of the run.
        more: facts that are known from elsewhere.
    """
    causal = causal_model(handle.model)
    embedding, head = causal.get_input_embeddings(), causal.get_output_embeddings()
    shared = None
    if isinstance(embedding, ENDS) and isinstance(head, ENDS):
        shared = embedding.weight.data_ptr() == head.weight.data_ptr()
    return LoadedFacts(
        recipe=recipe,
        compute=SHORT[handle.dtype],
        missing=handle.missing,
        unexpected=handle.unexpected,
        tied=ties_ends(causal.config),
        ends_shared=shared,
        vocabulary=int(embedding.weight.shape[0]),
        tokenizer_rows=len(handle.tokenizer),
        trainable=sum(p.numel() for p in handle.model.parameters() if p.requires_grad),
        kernel_failure=kernel_failure(handle.device),
        **more,
    )


def first_facts(handle: ModelHandle, plan: Plan, trainer: SupervisedTrainer, rows: Any) -> LoadedFacts:
    """Of a run's model, with one row of its data gone through it where the type is narrow."""
    report = plan.data.report
    narrow = handle.dtype == torch.float16
    return loaded_facts(
        handle,
        plan.recipe,
        largest_id=max(report.train.max_token_id, report.eval.max_token_id if report.eval else -1),
        overflow=overflow(trainer, collated(trainer, short_rows(rows)[:1])) if narrow else None,
    )


def watch_run(context: RunContext, handle: ModelHandle, checkpoint: Path | None) -> Watch:
    """The live checks of an attempt; one that resumes knows what came before."""
    plan, report = context.plan, context.plan.data.report
    watched = Watched(
        recipe=plan.recipe,
        resolved=plan.resolved,
        vocabulary=int(causal_model(handle.model).get_input_embeddings().weight.shape[0]),
        chats=report.template is not None and plan.recipe.method.supervise == "responses",
    )
    earlier: list[Event] = []
    if checkpoint is not None:
        last = step_of(checkpoint)
        events = last_attempt(read_events(context.dir.events)[0])
        earlier = [e for e in events if isinstance(e, StepEvent | EvalEvent) and e.step <= last]
    return Watch(watched, earlier)


def files_of(plan: Plan, path: Path) -> Files | None:
    """What the planner could not see because the weights were downloaded after it; None where it could."""
    if not plan.model.missing_weight_files:
        return None
    facts = read_model_facts(path, plan.recipe.model.name)
    return Files(plan.recipe, facts, plan.data.report, weight_facts(facts, plan.data.train))


def overflow(trainer: SupervisedTrainer, batch: dict[str, Any]) -> str | None:
    """The first module whose output is not finite on one batch; nothing is left behind.

    Only for fp16, whose range ends at 65,504: what bf16 and fp32 do not hold, they do not hold in training.
    """
    model: Any = trainer.model
    training = model.training
    model.eval()
    with preserved_rng(trainer.args.device), torch.no_grad(), trainer.accelerator.autocast():
        module = first_bad(trainer, [batch])
    model.train(training)
    return module


def kernel_failure(device: torch.device) -> str | None:
    """What a small kernel says when it is launched; None where it runs, or where none is used."""
    return launch(device) if runs_triton(device) else None


def launch(device: torch.device) -> str | None:
    """What went wrong with one small kernel; None where its numbers are right."""
    x_TD = torch.ones((4, 64), device=device)
    try:
        y_TD = rms_norm(x_TD, torch.ones(64, device=device), 1e-6)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as error:  # compilers, drivers and loaders fail each in a class of their own
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    wrong = float((y_TD - 1).abs().max())
    return None if wrong < 1e-3 else f"the root mean square norm of ones came out {wrong:.2g} off"
