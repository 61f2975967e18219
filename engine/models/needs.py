"""What LoRA on a model needs at least, before there is any data: arithmetic on rows of one length. Light."""

from __future__ import annotations

from functools import lru_cache

from ..data.formats import FormatGuess
from ..data.inspection import DataReport, Lengths, SplitReport
from ..fitting import capacity_of, fit, room_of
from ..hardware import Machine, with_memory
from ..recipe import BasePrecision, Recipe
from ..resolve import Resolved, resolve
from ..scheduler import longest_sequence
from .facts import ModelFacts
from .families import Supported, Unsupported, family_of
from .memory import Memory

GIB = 1 << 30
USUAL_LENGTH = 2048
"""Tokens of a row where nothing is known of the data: the recipe's default."""
ROWS = 1000


def held_choices(facts: ModelFacts, machine: Machine) -> list[BasePrecision]:
    """How the base can be held: as it is computed in, then in 4 bits where that is possible here."""
    if facts.quantization is not None:
        return ["auto"]
    return ["auto", "nf4"] if can_hold(facts, machine, "nf4") else ["auto"]


def can_hold(facts: ModelFacts, machine: Machine, precision: str) -> bool:
    """Whether whet may hold the model's weights so: the family does it, and bitsandbytes is there."""
    if isinstance(family_of(facts.model_type).capabilities.get(precision, Supported()), Unsupported):
        return False
    return precision == "fp8" or "bitsandbytes" in machine.versions


def targets_of(facts: ModelFacts) -> list[str] | str:
    """The adapter's targets for this family."""
    family = family_of(facts.model_type)
    return list(family.target_modules) if family.model_types else "all-linear"


def lora_recipe(facts: ModelFacts, tokens: int, precision: BasePrecision) -> Recipe:
    """LoRA with the default rank, one row of ``tokens`` at a time, activations recomputed."""
    length = max(8, min(tokens, facts.max_positions or tokens))
    return Recipe.model_validate(
        {
            "model": {"name": facts.name, "max_length": length, "precision": precision},
            "data": {"train": "none"},
            "adapter": {"target_modules": targets_of(facts)},
            "training": {"batch_size": 1, "gradient_accumulation": 8, "gradient_checkpointing": "on"},
        }
    )


def equal_rows(tokens: int) -> DataReport:
    """A report on rows of one length, all supervised."""
    split = SplitReport.model_validate(
        {
            "rows": ROWS,
            "token_rows": ROWS,
            "tokens": ROWS * tokens,
            "supervised_tokens": ROWS * tokens,
            "length": Lengths(p50=tokens, p95=tokens, p99=tokens, max=tokens),
        }
    )
    guess = FormatGuess(format="messages", confidence=1, reason="assumed")
    return DataReport(
        formats={"none": guess}, train=split, max_length=tokens, supervise="all", template="model"
    )


def held(facts: ModelFacts, machine: Machine, precision: BasePrecision) -> Resolved:
    """The exact settings behind :func:`lora_recipe`."""
    recipe = lora_recipe(facts, USUAL_LENGTH, precision)
    return resolve(recipe, facts, machine, equal_rows(recipe.model.max_length), ROWS)[0]


def least_memory(
    facts: ModelFacts, machine: Machine, precision: BasePrecision = "auto", tokens: int = USUAL_LENGTH
) -> Memory:
    """The least that training takes on this machine, everything recomputed; ``fits`` is for its own size.

    Args:
        facts: of the model.
        machine: whose device and memory count.
        precision: how the base is held; auto is the compute type.
        tokens: of the longest row; at most the model's positions.
    """
    return least_held(facts, machine, precision, tokens)[1]


def least_held(
    facts: ModelFacts, machine: Machine, precision: BasePrecision = "auto", tokens: int = USUAL_LENGTH
) -> tuple[str, Memory]:
    """How the base is held then, and :func:`least_memory`."""
    config = facts.path / "config.json"
    nowhere = lasting(with_memory(machine, 0))  # nothing fits, so the planner takes the smallest there is
    name, memory = _least(
        facts.model_dump_json(), config.stat().st_mtime_ns, nowhere.model_dump_json(), precision, tokens
    )
    free = max((gpu.memory_free for gpu in machine.gpus), default=machine.ram_available)
    return name, memory.model_copy(update={"capacity": capacity_of(machine), "available": free})


def lasting(machine: Machine) -> Machine:
    """The machine without what changes by the minute: free memory in whole GiB, no free disk."""
    gpus = [gpu.model_copy(update={"memory_free": gpu.memory_free // GIB * GIB}) for gpu in machine.gpus]
    ram = machine.ram_available // GIB * GIB
    return machine.model_copy(update={"gpus": gpus, "ram_available": ram, "disk_free": 0, "disks": []})


@lru_cache(maxsize=256)
def _least(
    facts_json: str, changed_ns: int, machine_json: str, precision: BasePrecision, tokens: int
) -> tuple[str, Memory]:
    """Arithmetic that lists of models ask for again and again, done once for each model and machine.

    Facts and machine come as JSON because that can be a key; ``changed_ns`` is the time of the model's
    config.json, which the shape is read from.
    """
    facts = ModelFacts.model_validate_json(facts_json)
    machine = Machine.model_validate_json(machine_json)
    recipe = lora_recipe(facts, tokens, precision)
    report = equal_rows(recipe.model.max_length)
    resolved, _ = resolve(recipe, facts, machine, report, ROWS)
    _, memory, _ = fit(recipe, resolved, facts, report, machine)
    return resolved.base_precision, memory


def longest_row(facts: ModelFacts, machine: Machine, precision: BasePrecision) -> int | None:
    """Tokens of the longest row that trains here; None off the fast path."""
    recipe = lora_recipe(facts, USUAL_LENGTH, precision)
    return longest_sequence(facts, recipe.adapter, held(facts, machine, precision), room_of(machine))
