"""The plan: what will happen, exactly, before anything happens. Light and fast, so it is made at every edit.

`make_plan` gathers facts (model, data, machine), resolves what the recipe left open, estimates memory and
time, and runs the checks. The same recipe on the same facts gives the same plan and the same id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from .adapted import with_family_targets
from .alternatives import Alternative, find_alternatives
from .checks import PlanFacts, run_checks
from .data.inspection import DataReport
from .data.mapping import Mapping
from .data.tokenizer_files import TokenizerFiles
from .disk import disk_bytes
from .errors import WhetError
from .findings import Finding
from .fitting import capacity_of, room_of
from .gguf_fit import gguf_facts
from .hardware import Machine, inspect_machine, with_memory
from .methods.embedding.batch_facts import BatchFacts, batch_facts
from .methods.stored_rows import StoredRows
from .models.facts import ModelFacts, read_model_facts, resolve_model
from .models.memory import Memory
from .models.weight_facts import weight_facts
from .parallel.fitting import RankPlan, Sharing
from .rates import known_rate, predicted_rate
from .recipe import Recipe
from .recipe_files import patched
from .resolve import RECIPE_KEYS, Resolved, recipe_origins, resolve, resolved_length
from .runs.manifest import SUMS, changed_files
from .scheduler import Room, longest_sequence
from .surroundings import Surroundings, inspect_surroundings
from .template_fit import fitting_mapping, fitting_template, missing_markers, template_for

USUAL_MEMORY = (24, 48, 80, 141)
"""GB of common GPUs."""

__all__ = ["RECIPE_KEYS", "Alternative", "DataFacts", "Plan", "Resolved", "make_plan"]


class DataFacts(BaseModel):
    """The prepared data: where the tokens lie, the hashes that name them, what was seen in them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dir: Path
    digest: str
    template_digest: str | None
    train: Path
    eval: Path | None
    report: DataReport

    def is_complete(self) -> bool:
        """Whether all of it still lies in the cache, with the bytes that were written."""
        if not all(path.is_file() for path in (self.train, self.eval) if path is not None):
            return False
        summed = (self.dir / SUMS).is_file()
        return not summed or not changed_files(self.dir, content=True, manifest=SUMS)


class Plan(BaseModel):
    """Everything about a run that is known before it starts. JSON-serialisable; a run starts from its id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(description="Hash of the recipe, the resolved values, the model and the data.")
    recipe: Recipe
    resolved: Resolved
    origins: dict[str, str] = Field(
        description="Recipe key to default, recipe, override, or `planner: reason`; see RECIPE_KEYS."
    )
    model: ModelFacts
    data: DataFacts
    memory: Memory
    tokens_per_epoch: int
    total_tokens: int
    seconds: float | None = Field(
        description="Training time: as measured for this work, else as predicted; None: neither is known."
    )
    seconds_measured: bool = Field(
        default=False, description="The time is of an earlier run of the same work, not the time model's."
    )
    exchange_seconds: float | None = Field(
        default=None,
        description="Predicted, of a step: what ranks wait for each other's gradients and weights.",
    )
    fitting_gpus: int | None = Field(
        default=None, description="Where it does not fit: so many such GPUs would hold it in shares."
    )
    longest_sequence: int | None = Field(
        default=None, description="Tokens of the longest row that would fit here; None off the fast path."
    )
    longest_by_memory: dict[int, int] = Field(
        default_factory=dict, description="The same for GPUs of so many GB."
    )
    folder: Path = Field(default_factory=Path.cwd, description="Where relative paths of the recipe begin.")
    disk_bytes: dict[str, int] = Field(description="What the run will write: checkpoints, export, temporary.")
    mapping: Mapping | None = Field(
        default=None, description="Guessed: how rows are read whose columns have no known names (D15)."
    )
    findings: list[Finding]
    alternatives: list[Alternative] = Field(
        default_factory=list, description="Ways out when it does not fit."
    )
    versions: dict[str, str]

    def blocked(self) -> list[Finding]:
        """Errors the recipe does not accept by id; a run with any of these must not start."""
        return [f for f in self.findings if f.severity == "error" and f.id not in self.recipe.accept]

    def data_recipe(self) -> Recipe:
        """The recipe as the data was prepared by it; preparing it again gives the same digest."""
        report = self.data.report
        template = None if report.template == "model" else report.template
        return _data_recipe(self.recipe, self.resolved.max_length, template, self.mapping)


def make_plan(
    recipe: Recipe,
    *,
    overrides: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
    machine: Machine | None = None,
    surroundings: Surroundings | None = None,
) -> Plan:
    """Everything about the run that ``recipe`` asks for; starts nothing.

    Args:
        recipe: with the overrides already applied.
        overrides: the ``key=value`` texts that were applied, so that values can say where they come from.
        progress: called with the number of rows read while data is prepared for the first time.
        machine: plan for this machine instead of the one at hand.
        surroundings: of that machine; without them nothing is known of another machine's.

    Raises:
        WhetError: model or data cannot be found or read at all. What merely speaks against the run is a
        finding.
    """
    path = resolve_model(recipe.model.name, recipe.model.revision)
    machine, around = _place(recipe, machine, surroundings)
    made = _decide(recipe, read_model_facts(path, recipe.model.name), machine, progress)
    recipe, facts, data, resolved = made.recipe, made.facts, made.data, made.shared.resolved
    disk = disk_bytes(recipe, resolved, facts)
    return Plan(
        id=_plan_id(recipe, resolved, facts, data),
        recipe=recipe,
        resolved=resolved,
        origins=recipe_origins(recipe, overrides) | made.reasons,
        model=facts,
        data=data,
        memory=made.shared.memory,
        **_tokens_and_time(recipe, resolved, facts, data, fits=made.shared.memory.fits),
        exchange_seconds=made.shared.exchange_seconds,
        fitting_gpus=made.fitting_gpus,
        **_longest(recipe, resolved, facts, machine),
        disk_bytes=disk,
        mapping=made.mapping,
        findings=run_checks(_checked_facts(made, disk, around)),
        alternatives=made.alternatives,
        versions=machine.versions,
    )


@dataclass(frozen=True)
class _Decided:
    """What the planner made of a recipe, before anything is checked."""

    recipe: Recipe
    facts: ModelFacts
    machine: Machine
    data: DataFacts
    template: str | None
    mapping: Mapping | None
    shared: RankPlan
    batches: BatchFacts | None
    alternatives: list[Alternative]
    fitting_gpus: int | None
    reasons: dict[str, str]


def _decide(
    recipe: Recipe, facts: ModelFacts, machine: Machine, progress: Callable[[int], None] | None
) -> _Decided:
    """Prepare the data, settle what the recipe left open, and find ways out where that does not fit."""
    recipe, targets = with_family_targets(recipe, facts)
    data, template, mapping = _prepared(recipe, facts, progress)
    sequences = _sequences(recipe, facts, data)
    alone, reasons = resolve(recipe, facts, machine, data.report, sequences)
    sharing = Sharing(recipe, alone, facts, data.report, machine)
    shared = sharing.planned(sharing.choice)
    resolved, memory = shared.resolved, shared.memory
    reasons |= shared.reasons
    if targets:
        reasons["adapter.target_modules"] = f"planner: {targets}"
    if template:
        reasons["data.template"] = f"planner: the model has none, and {template} fits its vocabulary"
    batches = _suited(recipe, resolved, facts, data)
    others = [] if memory.fits else find_alternatives(recipe, resolved, facts, machine, data.report, memory)
    fewest = None if memory.fits else sharing.fewest()
    return _Decided(recipe, facts, machine, data, template, mapping, shared, batches, others, fewest, reasons)


def _checked_facts(made: _Decided, disk: dict[str, int], surroundings: Surroundings) -> PlanFacts:
    recipe, facts, machine = made.recipe, made.facts, made.machine
    missing = missing_markers(recipe, facts)
    return PlanFacts(
        recipe=recipe,
        resolved=made.shared.resolved,
        model=facts,
        machine=machine,
        report=made.data.report,
        memory=made.shared.memory,
        alternatives=tuple(made.alternatives),
        disk_bytes=disk,
        fitting_template=made.template,
        missing_markers=missing,
        better_template=template_for(facts) if missing and not facts.has_chat_template else None,
        bitsandbytes="bitsandbytes" in machine.versions,
        **gguf_facts(recipe, facts, machine),
        weights=weight_facts(facts, made.data.train),
        tokenizer=TokenizerFiles.read(facts.path),
        mapping=made.mapping,
        batches=made.batches,
        ranks_problem=made.shared.problem,
        fitting_gpus=made.fitting_gpus,
        surroundings=surroundings,
    )


def _place(
    recipe: Recipe, machine: Machine | None, surroundings: Surroundings | None
) -> tuple[Machine, Surroundings]:
    """The machine, with no more memory than the recipe allows, and what lies around it."""
    if machine is None:
        machine = inspect_machine()
        surroundings = surroundings or inspect_surroundings(machine)
    if recipe.training.max_memory_gib is not None:
        machine = with_memory(machine, int(recipe.training.max_memory_gib * 2**30))
    return machine, surroundings or Surroundings()


def _suited(recipe: Recipe, resolved: Resolved, facts: ModelFacts, data: DataFacts) -> BatchFacts | None:
    """Refuses rows that the method cannot learn; what an embedding model's batches will hold (D14)."""
    if recipe.method.kind == "sft":
        return None
    rows = StoredRows(data.report, data.train, facts, resolved.batch_size, resolved.base_precision)
    recipe.method.refuse_rows(rows)
    return batch_facts(recipe.method, rows) if recipe.method.kind == "embedding" else None


def _prepared(
    recipe: Recipe, facts: ModelFacts, progress: Callable[[int], None] | None
) -> tuple[DataFacts, str | None, Mapping | None]:
    """The data, with the template (D09) and the columns (D15) that the planner had to choose for it."""
    length = resolved_length(recipe, facts)

    def prepare(mapping: Mapping | None) -> tuple[DataFacts, str | None, Mapping | None]:
        template = fitting_template(_mapped(recipe, mapping), facts)
        wanted = _data_recipe(recipe, length, template, mapping)
        return prepare_data(wanted, facts.path, progress), template, mapping

    try:
        return prepare(None)
    except WhetError as error:
        mapping = fitting_mapping(recipe) if error.code == "data.format" else None
        if mapping is None:
            raise
    return prepare(mapping)


def _mapped(recipe: Recipe, mapping: Mapping | None) -> Recipe:
    if mapping is None:
        return recipe
    return patched(recipe, {"data.format": mapping.format, "data.columns": mapping.columns})


def _data_recipe(
    recipe: Recipe, max_length: int, template: str | None, mapping: Mapping | None = None
) -> Recipe:
    """Rows no longer than the model's positions; chat rows with a template where the recipe names none.

    Bad rows are left out here and counted: with ``data.bad_rows: stop`` they are an error of the plan.
    """
    recipe = _mapped(recipe, mapping)
    patch: dict[str, object] = {}
    if recipe.data.bad_rows == "stop":
        patch["data.bad_rows"] = "skip"
    if template is not None and recipe.data.template is None:
        patch["data.template"] = template
    if max_length != recipe.model.max_length:
        patch["model.max_length"] = max_length
    return patched(recipe, patch) if patch else recipe


def prepare_data(recipe: Recipe, model_dir: Path, progress: Callable[[int], None] | None) -> DataFacts:
    """The tokens of a recipe's rows; see :func:`whet.engine.data.token_store.prepare`."""
    from .data.token_store import prepare

    prepared = prepare(recipe, model_dir, progress)
    return DataFacts(
        dir=prepared.dir,
        digest=prepared.digest,
        template_digest=prepared.template_digest,
        train=prepared.train,
        eval=prepared.eval,
        report=prepared.report,
    )


def _sequences(recipe: Recipe, facts: ModelFacts, data: DataFacts) -> int:
    """Rows of one epoch, or packed sequences when rows are packed across steps."""
    rows = data.report.train.token_rows
    if not recipe.method.packing or not rows:
        return rows
    import pyarrow as pa
    import pyarrow.compute as pc

    from .data.packing import pack

    capacity = resolved_length(recipe, facts)
    with pa.memory_map(str(data.train)) as source:
        column = pa.ipc.open_stream(source).read_all()["input_ids"]
        return len(pack(pc.list_value_length(column).to_pylist(), capacity))


def _tokens_and_time(
    recipe: Recipe, resolved: Resolved, facts: ModelFacts, data: DataFacts, *, fits: bool
) -> dict[str, Any]:
    """Of the plan: the tokens that training sees, and the seconds it takes for them."""
    tokens = data.report.train.tokens
    if recipe.method.kind == "grpo":
        tokens = recipe.method.epoch_tokens(tokens, resolved.sequences)
    total = round(tokens * resolved.epochs)
    measured = known_rate(facts, resolved)
    rate = measured or (predicted_rate(resolved) if fits else None)
    return {
        "tokens_per_epoch": tokens,
        "total_tokens": total,
        "seconds": round(total / rate, 1) if rate else None,
        "seconds_measured": measured is not None,
    }


def _longest(recipe: Recipe, resolved: Resolved, facts: ModelFacts, machine: Machine) -> dict[str, Any]:
    """Of the plan: tokens of the longest row that fits this machine, and GPUs of the usual sizes in it."""
    if resolved.strategy not in ("single", "ddp"):  # weights in shares go another way
        return {}

    def fitting(room: Room) -> int | None:
        return longest_sequence(facts, recipe.adapter, resolved, room)

    here = room_of(machine, resolved.ranks)
    sizes, taken = USUAL_MEMORY if machine.gpus else (), capacity_of(machine) - here.device
    by_size = {size: fitting(Room(size * 10**9 - taken, here.host)) for size in sizes}
    return {
        "longest_sequence": fitting(here),
        "longest_by_memory": {size: length for size, length in by_size.items() if length is not None},
    }


def _plan_id(recipe: Recipe, resolved: Resolved, facts: ModelFacts, data: DataFacts) -> str:
    """Sixteen hex digits that name what will be done, to what, with which data."""
    # The schedule follows what was measured of the machine, and changes no result.
    parts = {
        "recipe": recipe.model_dump(mode="json"),
        "resolved": resolved.model_dump(mode="json", exclude={"schedule", "gradient_checkpointing"}),
        "model": [str(facts.path), facts.digest(), facts.weight_bytes],
        "data": [data.digest, data.template_digest],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
