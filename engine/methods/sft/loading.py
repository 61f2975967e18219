"""The model and the tokens of a plan as training sees them; evaluation measures the same."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset

from ...data.chat_templates.renderer import strip_generation_tags
from ...data.tokenization import template_source
from ...errors import WhetError
from ...models.adapters import add_adapter, hold_trained_in_fp32
from ...models.end_tokens import add_end_tokens
from ...models.fast_path import FastPathReport, apply_fast_path, causal_model, program_of
from ...models.fast_path.projections import fp8_classes
from ...models.loading import ModelHandle, load_model
from ...models.locate import resolve_model
from ...models.own_code import check_own_code, own_code
from ...parallel.fsdp import casts_gathered, count_bytes_as_numbers, in_turn, shard
from ...parallel.process_group import world_size
from ...plan import DataFacts, Plan, prepare_data
from ...recipe import Recipe
from ...runs.context import RunContext
from ...runs.events import PhaseEvent
from ..sampling import end_of_turn_id


@dataclass(frozen=True)
class Trainee:
    """A loaded base with a fresh adapter (or all of its weights to train), on the fast path where it can."""

    handle: ModelHandle
    report: FastPathReport
    more_ends: bool
    """The plan's end tokens changed the model's generation settings."""


def locate_base(context: RunContext) -> tuple[Path, bool]:
    """The folder of a run's base model, and whether its own code may run: only what its starter allowed."""
    model, allowed = context.recipe.model, context.dir.allowed_code()
    path = resolve_model(model.name, model.revision, weights=True, code=bool(allowed))
    trusted = bool(allowed) and own_code(model.name, path) in allowed
    if trusted:
        check_own_code(model.name, path)
    return path, trusted


def load_trainee(plan: Plan, path: Path, trust_remote_code: bool = False) -> Trainee:
    """Load the model of a plan from ``path``. A fresh adapter changes nothing yet: it answers as its base.

    Processes that the plan lets hold it in shares enter together, and each keeps its share.
    """
    if plan.resolved.strategy == "fsdp" and world_size() > 1:
        return in_turn(lambda: _load_share(plan, path, trust_remote_code))
    handle, more_ends = load_plain(plan, path, trust_remote_code)
    if plan.resolved.strategy == "deepspeed" and world_size() > 1:
        return Trainee(
            handle, _plain("strategy deepspeed: it sees the gradients of plain modules"), more_ends
        )
    return Trainee(handle, _to_fast_path(plan, handle), more_ends)


def load_plain(plan: Plan, path: Path, trust_remote_code: bool = False) -> tuple[ModelHandle, bool]:
    """As :func:`load_trainee`, on transformers' own layers; and whether the end tokens changed."""
    recipe = plan.recipe
    named = plan.data_recipe().data.template
    template = None if named is None else strip_generation_tags(template_source(named, None) or "")
    handle = load_model(path, plan.resolved, template=template, trust_remote_code=trust_remote_code)
    more_ends = add_end_tokens(handle.model, handle.tokenizer, _end_tokens(plan, handle, named))
    if recipe.adapter.kind == "none":
        hold_trained_in_fp32(handle.model)
    else:
        name, revision = recipe.model.name, recipe.model.revision
        base = str(path) if Path(name).exists() or name == "demo" else name
        seed = recipe.training.seed
        handle.model = add_adapter(handle.model, recipe.adapter, seed, name=base, revision=revision)
    return handle, more_ends


def _load_share(plan: Plan, path: Path, trust_remote_code: bool) -> Trainee:
    """The whole model in the computer's memory, of which this process's share goes to its device."""
    resolved = plan.resolved
    in_memory = plan.model_copy(update={"resolved": resolved.model_copy(update={"device": "cpu"})})
    handle, more_ends = load_plain(in_memory, path, trust_remote_code)
    handle.device = torch.device(resolved.device)
    model = causal_model(handle.model)
    if resolved.base_precision == "nf4":
        count_bytes_as_numbers(model)
    casts = casts_gathered(resolved.base_precision, resolved.compute_dtype)
    shard(model, handle.device, handle.dtype, casts=casts)
    reason = "strategy fsdp: a layer's weights are gathered when transformers' own layer runs"
    return Trainee(handle, _plain(reason), more_ends)


def _plain(reason: str) -> FastPathReport:
    report = FastPathReport()
    report.count("layers", reason)
    return report


def _end_tokens(plan: Plan, handle: ModelHandle, template: str | None) -> list[str]:
    """Those of the recipe, and the end of turn of a template that is not the model's own."""
    end = end_of_turn_id(handle.tokenizer) if template is not None else None
    own = [] if end is None else [str(handle.tokenizer.convert_ids_to_tokens(end))]
    return [*own, *plan.recipe.model.end_tokens]


def _to_fast_path(plan: Plan, handle: ModelHandle) -> FastPathReport:
    resolved = plan.resolved
    fp8 = fp8_classes(handle.device, four_bits=True) if resolved.products == "fp8" else ()
    report = apply_fast_path(handle.model, handle.dtype, fp8=fp8)
    program = program_of(handle.model)
    if program is not None:  # a schedule, where there is one, takes over once the trainer stands
        kept = [not resolved.gradient_checkpointing] * len(program.layers)
        program.set_keep(kept, kept)
    return report


def planned_tokens(context: RunContext, model_dir: Path) -> DataFacts:
    """The tokens that were planned: as the plan left them, else made again from the same rows.

    A run that was planned needs its source files no more, unless someone emptied the cache. Of several
    processes the first one makes them. Raises WhetError ``data.changed`` when they give other tokens now.
    """
    return in_turn(lambda: _planned_tokens(context, model_dir))


def _planned_tokens(context: RunContext, model_dir: Path) -> DataFacts:
    planned = context.plan.data
    if planned.is_complete():
        return planned
    shutil.rmtree(planned.dir, ignore_errors=True)  # what is damaged must not be found again
    data = prepare_tokens(context, context.plan.data_recipe(), model_dir)
    if data.digest != planned.digest:
        raise WhetError(
            "data.changed",
            f"The prepared data is gone from {planned.dir}, and its source is not what was planned: the "
            f"hash was {planned.digest[:12]}, it is now {data.digest[:12]}. The rows, the tokenizer or "
            "the template changed since the plan.",
            "Plan again with `whet train RECIPE`, or put the files back.",
        )
    return data


def prepare_tokens(context: RunContext, recipe: Recipe, model_dir: Path) -> DataFacts:
    """Read and tokenise a recipe's rows, and say how many. Raises Stopped, WhetError ``data.*``."""

    def progress(rows: int) -> None:
        context.leave_if_asked()
        context.emit(PhaseEvent(phase="data", detail=f"{rows:,} rows read", done=rows))

    context.emit(PhaseEvent(phase="data"))
    return prepare_data(recipe, model_dir, progress)


def open_rows(path: Path) -> Dataset:
    """Tokenised rows as a memory-mapped data set that gives numpy arrays ``input_ids`` and ``labels``."""
    return Dataset.from_file(str(path)).select_columns(["input_ids", "labels"]).with_format("numpy")
