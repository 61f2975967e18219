"""Fit a run into the machine: the fast path's schedule, else gradient checkpointing. Light."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .calibration import ceilings_of
from .data.inspection import DataReport
from .export.task_heads import KINDS
from .hardware import Machine
from .models.facts import ModelFacts
from .models.families import Unsupported
from .models.fast_memory import choice_of, fast_memory
from .models.fast_shape import FastShape, fast_shape
from .models.fast_time import Rows, rows_of
from .models.memory import FRAGMENTATION, Memory, estimate_memory
from .models.writing_memory import beside_writing, fits_writing
from .parallel.rank_memory import exchange_buffers
from .recipe import Recipe
from .resolve import Resolved
from .schedule import Schedule
from .scheduler import Room, choose_schedule

KEY = "training.gradient_checkpointing"
COMPARING = ("preference", "reward", "grpo")
"""Methods on the fast path whose loss compares the rows of a micro-batch: they go through together."""


def fit(
    recipe: Recipe, resolved: Resolved, facts: ModelFacts, report: DataReport, machine: Machine
) -> tuple[Resolved, Memory, dict[str, str]]:
    """The settings with a schedule (or checkpointing) chosen for this machine, what they need, and why.

    On the fast path a step's rows are regrouped and layers recompute as memory asks. Elsewhere checkpointing
    for ``auto`` is off when the step fits without it, since it costs a third in speed.
    """
    facts = as_loaded(recipe, facts)
    shape = fast_shape(facts, recipe.adapter, resolved)
    if isinstance(shape, Unsupported) or recipe.method.kind not in ("sft", "tts", *COMPARING):
        return choose_checkpointing(recipe, resolved, facts, report, machine)
    rows, forwards = step_rows(recipe, resolved, report), passes(recipe, report)
    asked = recipe.training.gradient_checkpointing
    speeds = ceilings_of(machine)
    room = room_of(machine, resolved.ranks)
    schedule = choose_schedule(shape, rows, room, speeds, asked, forwards=forwards)
    if forwards is not None:
        schedule = _of_a_step(schedule, resolved)
    resolved = resolved.model_copy(
        update={"schedule": schedule, "gradient_checkpointing": schedule.recomputes}
    )
    why = {KEY: f"planner: {'on' if schedule.recomputes else 'off'}, {schedule.summary()}"}
    resolved, memory = in_turns(
        recipe, resolved, facts, lambda held: scheduled_memory(shape, held, rows, facts, machine, forwards)
    )
    return resolved, memory, why if asked == "auto" else {}


def in_turns(
    recipe: Recipe, resolved: Resolved, facts: ModelFacts, needs: Callable[[Resolved], Memory]
) -> tuple[Resolved, Memory]:
    """The settings with a step's answers written in as few turns, all of one size, as let it fit; where no
    number does, in the fewest that take the least.

    vLLM arranges by itself what it writes.
    """
    memory = needs(resolved)
    if resolved.answers and recipe.method.kind == "grpo" and recipe.method.generation == "whet":
        turns = (turns for turns in range(2, resolved.answers + 1) if resolved.answers % turns == 0)
        while not fits_writing(memory, facts, resolved) and (more := next(turns, None)) is not None:
            divided = resolved.model_copy(update={"turns": more})
            smaller = needs(divided)
            if smaller.peak < memory.peak or fits_writing(smaller, facts, divided):
                resolved, memory = divided, smaller
    return resolved, memory


def as_loaded(recipe: Recipe, facts: ModelFacts) -> ModelFacts:
    """The model as the method loads it: without the head that a task's own replaces."""
    if recipe.method.kind not in KINDS:
        return facts
    whole = facts.parameters
    linear = [module for module in whole.linear if module.pattern != "lm_head"]
    update = {"total": whole.total - whole.head, "head": 0, "linear": linear}
    return facts.model_copy(update={"parameters": whole.model_copy(update=update)})


def _of_a_step(schedule: Schedule, resolved: Resolved) -> Schedule:
    """The schedule of one micro-batch as that of a step of several alike.

    The time model knows nothing of answers that are written before a step, so it predicts none of those.
    """
    micro_batches = resolved.gradient_accumulation
    seconds = None if resolved.answers else schedule.step_seconds
    return schedule.model_copy(
        update={
            "micro_batches": float(micro_batches),
            "step_tokens": micro_batches * schedule.step_tokens,
            "step_seconds": None if seconds is None else micro_batches * seconds,
        }
    )


def passes(recipe: Recipe, report: DataReport) -> int | None:
    """Passes without a gradient beside the one that trains; None for a method whose loss compares nothing.

    Those over written answers (a reference's, the older model's) come before a step and not beside it.
    """
    if recipe.method.kind == "preference":
        return recipe.method.passes(report.format.name)
    return 0 if recipe.method.kind in COMPARING else None


def step_rows(recipe: Recipe, resolved: Resolved, report: DataReport) -> Rows:
    """Rows of one rank's optimizer step, as the report saw them; of a micro-batch, where its loss compares
    them."""
    if recipe.method.kind == "grpo":
        return _answered(report, resolved, recipe.method.max_completion_length)
    if resolved.method in COMPARING:
        texts = report.texts_per_row
        rows = rows_of(report.train, resolved.batch_size, resolved.longest, texts=texts)
        return rows if resolved.method == "preference" else replace(rows, supervised=0.0)
    return rows_of(report.train, resolved.rows_per_rank, resolved.longest, packed=resolved.packing)


def _answered(report: DataReport, resolved: Resolved, answer: int) -> Rows:
    """Of a micro-batch: the report's prompts, each with an answer of the most tokens it may have.

    The share of labels is the longest row's, for which memory is planned.
    """
    prompts = rows_of(report.train, resolved.batch_size, resolved.longest - answer)
    mean = prompts.mean + answer
    second = prompts.mean * (prompts.seen + 2 * answer) + answer**2  # E[(prompt + answer)^2]
    return replace(
        prompts,
        longest=resolved.longest,
        mean=mean,
        seen=second / mean,
        supervised=answer / resolved.longest,
        equal=False,
    )


def capacity_of(machine: Machine) -> int:
    """Bytes of the device; of several GPUs the smallest counts, since a run takes whichever is free."""
    return min((gpu.memory_total for gpu in machine.gpus), default=machine.ram_total)


def room_of(machine: Machine, ranks: int = 1) -> Room:
    """The device without what the exchange between ``ranks`` takes of it, and host memory for what is
    offloaded from a GPU."""
    taken = int(exchange_buffers(bool(machine.gpus), ranks) * (1 + FRAGMENTATION))
    return Room(capacity_of(machine) - taken, machine.ram_available if machine.gpus else 0)


def scheduled_memory(
    shape: FastShape,
    resolved: Resolved,
    rows: Rows,
    facts: ModelFacts,
    machine: Machine,
    forwards: int | None = None,
) -> Memory:
    """What the chosen schedule needs, or writing its answers; ``forwards`` as :func:`passes` has it."""
    assert resolved.schedule is not None
    memory = fast_memory(
        shape,
        choice_of(resolved.schedule, rows.supervised, rows.longest, forwards),
        capacity=capacity_of(machine),
        available=max((gpu.memory_free for gpu in machine.gpus), default=machine.ram_available),
        exact=facts.parameters.exact,
    )
    components = beside_writing(memory.components, facts, resolved)
    return memory.model_copy(update={"components": components, "peak": sum(components.values())})


def choose_checkpointing(
    recipe: Recipe,
    resolved: Resolved,
    facts: ModelFacts,
    report: DataReport,
    machine: Machine,
    memory_of: Callable[[Memory, Resolved], Memory] = lambda memory, resolved: memory,
) -> tuple[Resolved, Memory, dict[str, str]]:
    """Off the fast path: ``auto`` recomputes where the step does not fit without.

    ``memory_of`` makes that of a rank out of one GPU's.
    """

    def needs(held: Resolved) -> Memory:
        return memory_of(estimate_memory(facts, recipe.adapter, held, report, machine), held)

    resolved, memory = in_turns(recipe, resolved, facts, needs)
    if recipe.training.gradient_checkpointing != "auto":
        return resolved, memory, {}
    if memory.fits:
        return resolved, memory, {KEY: "planner: off, the step fits without recomputing"}
    with_it = resolved.model_copy(update={"gradient_checkpointing": True, "turns": 1})
    resolved, memory = in_turns(recipe, with_it, facts, needs)
    return resolved, memory, {KEY: "planner: on, the step does not fit without recomputing"}
