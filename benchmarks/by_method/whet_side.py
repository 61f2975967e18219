"""whet's side: the method's own training, as a run has it, of the recipe that the case describes."""

from __future__ import annotations

import inspect
from dataclasses import replace
from importlib import import_module
from typing import Any

from cases import ALPHA, RANK, SEED, Job, Measured
from timing import Clock, measured

from whet.engine.calibration import calibrate, known_ceilings
from whet.engine.hardware import inspect_machine
from whet.engine.methods.jobs import METHODS
from whet.engine.methods.training import Training, train
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.runs.context import RunContext
from whet.engine.runs.events import FAST_PATH, EventLog, FindingEvent, PhaseEvent, StepEvent, read_events
from whet.engine.runs.store import RunStore


def run(job: Job) -> Measured:
    """Plan, train, measure. $WHET_HOME is a folder of these processes; the first one measures the GPU, as
    a machine's first run does."""
    machine = inspect_machine()
    if job.device == "cuda" and known_ceilings(machine) is None:
        calibrate(machine)
    plan = make_plan(recipe_of(job))
    directory = RunStore().create(plan, "benchmark")
    directory.write_state(status="running", attempt=1)
    context = RunContext(directory, 1, EventLog(directory.events, 1))
    clock, kind = Clock(), training_of(job.case)

    def timed(context: RunContext) -> Training:
        training: Any = kind(context)
        training.trainer.add_callback(clock)
        return training

    train(context, timed)
    events = read_events(directory.events)[0]
    steps = [event for event in events if isinstance(event, StepEvent)]
    losses = [event.loss for event in steps]
    rewards = [event.metrics["reward"] for event in steps if "reward" in event.metrics]
    fused = [event.detail for event in events if isinstance(event, PhaseEvent)]
    said = [detail.removeprefix(FAST_PATH) for detail in fused if detail.startswith(FAST_PATH)]
    slow = [*plan.findings, *(event.finding for event in events if isinstance(event, FindingEvent))]
    reasons = list(dict.fromkeys(one.title for one in slow if one.id == "L08"))
    # The plan's own seconds are rounded, and follow what earlier cases measured in the same folder.
    schedule = plan.resolved.schedule
    return replace(
        measured(job, clock, losses, rewards),
        planned=plan.memory.allocated,
        planned_step=None if schedule is None else schedule.step_seconds,
        fused=said[-1] if said else " ".join(reasons),
    )


def recipe_of(job: Job) -> Recipe:
    """Everything in fp32 on a CPU, in bf16 on a GPU; nothing is recomputed on either side."""
    return Recipe.model_validate(
        {
            "model": {"name": job.folder, "max_length": job.length},
            "data": {"train": job.rows},
            "method": job.method,
            "adapter": {"rank": RANK, "alpha": ALPHA, "target_modules": job.targets},
            "training": {
                "max_steps": job.steps, "batch_size": job.batch, "gradient_accumulation": 1,
                "learning_rate": 1e-4, "optimizer": "adamw", "warmup": 0, "seed": SEED,
                "save_every": job.steps, "threads": job.threads, "gradient_checkpointing": "off",
            },
            "accept": ["D16"],
        }
    )  # fmt: skip


def training_of(kind: str) -> Any:
    """The class that trains a method."""
    module = import_module(METHODS[kind][0], "whet.engine.methods")
    return next(
        one
        for one in vars(module).values()
        if inspect.isclass(one)
        and issubclass(one, Training)
        and one.__module__ == module.__name__
        and not inspect.isabstract(one)
    )
