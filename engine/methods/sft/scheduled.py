"""A schedule of the planner put in force, and one made for a model that is already on the device."""

from __future__ import annotations

import torch

from ...calibration import ceilings_of
from ...hardware import inspect_machine
from ...models.facts import ModelFacts
from ...models.families import Unsupported
from ...models.fast_path import DecoderProgram
from ...models.fast_shape import Precisions, fast_shape
from ...models.fast_time import Rows
from ...models.memory import CUDA_CONTEXT
from ...recipe import AdapterSection
from ...schedule import Schedule
from ...scheduler import Recompute, Room, choose_schedule
from .fast_step import FastStep

UNCHUNKED = 1 << 30


def follow_schedule(program: DecoderProgram, schedule: Schedule) -> None:
    """Let the layers keep, compute again and put away what the schedule says."""
    program.set_keep(schedule.keep_attention, schedule.keep_mlp, schedule.offloaded)
    program.chunk = schedule.chunk or UNCHUNKED
    program.logit_bytes = schedule.logit_bytes


def follow(fast: FastStep, schedule: Schedule) -> None:
    """Run steps by the schedule: the layers, and how many tokens go through at once."""
    follow_schedule(fast.program, schedule)
    fast.budget = schedule.budget


def schedule_here(
    facts: ModelFacts,
    adapter: AdapterSection,
    held: Precisions,
    rows: Rows,
    recompute: Recompute = "auto",
    forwards: int | None = None,
) -> Schedule | None:
    """The schedule for the memory that is free now, the model being loaded; None off the fast path.

    On a GPU, memory that `torch.cuda.set_per_process_memory_fraction` withholds does not count as free.

    Args:
        facts: of the base model.
        adapter: what is trained.
        held: precisions; its device is where the model is.
        rows: of an optimizer step; :meth:`whet.engine.models.fast_time.Rows.of_lengths` makes them.
        recompute, forwards: as :func:`whet.engine.scheduler.choose_schedule` has them.
    """
    shape = fast_shape(facts, adapter, held)
    if isinstance(shape, Unsupported):
        return None
    machine = inspect_machine()
    if held.device == "cpu":
        room = Room(machine.ram_total)
    else:  # what this process holds already is counted by the schedule too
        free, total = torch.cuda.mem_get_info()
        allowed = int(torch.cuda.get_per_process_memory_fraction() * total)
        free = min(free + torch.cuda.memory_reserved(), allowed)
        room = Room(free + CUDA_CONTEXT, machine.ram_available)
    return choose_schedule(shape, rows, room, ceilings_of(machine), recompute, forwards=forwards)
