"""Memory that ran out while training: the finding with the planner's ways out, not a stack trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..alternatives import find_alternatives
from ..errors import WhetError
from ..findings import Finding, Fix
from ..hardware import inspect_machine
from ..plan import Plan
from ..runs.context import RunContext
from ..runs.events import FindingEvent
from .callbacks import memory_in_use

GIB = 2**30
ENOUGH = 0.8
"""Of the estimate that was too low: what the mildest way out may need to be proposed first."""
NO_MEMORY_TEXTS = ("DefaultCPUAllocator", "out of memory")
"""In the texts of RuntimeErrors that mean memory: torch's on a CPU, a driver's, NCCL's."""


@contextmanager
def out_of_memory_said(context: RunContext) -> Iterator[None]:
    """Emit L11 when memory runs out inside.

    Raises:
        WhetError: ``run.out_of_memory`` in place of torch's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        finding = out_of_memory(context.plan, context.dir.read_state().step, str(error))
        context.emit(FindingEvent(finding=finding))
        assert finding.fix is not None
        raise WhetError("run.out_of_memory", f"L11: {finding.title}", finding.fix.text) from error


def _is_of_memory(error: MemoryError | RuntimeError) -> bool:
    """RuntimeErrors have many classes, those of a lost rank among them; only some mean memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(text in str(error) for text in NO_MEMORY_TEXTS)


def out_of_memory(plan: Plan, step: int, said: str) -> Finding:
    """L11, with the planner's alternatives to what it had thought would fit.

    Args:
        plan: of the run.
        step: the last one that was finished, or the last one known of.
        said: the allocator's text.
    """
    resolved, memory = plan.resolved, plan.memory
    others = find_alternatives(plan.recipe, resolved, plan.model, inspect_machine(), plan.data.report, memory)
    smallest = sorted(others, key=lambda one: one.memory.peak)
    enough = [one for one in others if one.memory.needed <= ENOUGH * memory.needed] or smallest
    fix = (
        Fix(text=enough[0].text, patch=enough[0].patch)
        if enough
        else Fix(text="Free memory on this machine, or use a smaller model or a larger one.")
    )
    return Finding(
        id="L11",
        severity="error",
        title=f"Memory ran out after step {step}, though the plan's estimate was "
        f"{memory.needed / GIB:.1f} of {memory.capacity / GIB:.1f} GiB.",
        evidence={
            "step": step,
            "in_use_gib": round(memory_in_use(torch.device(resolved.device)) / GIB, 2),
            "longest_row": resolved.longest,
            "said": said.strip().splitlines()[0][:200] if said.strip() else "",
            "alternatives": [
                {"patch": one.patch, "needed_gib": round(one.memory.needed / GIB, 2)} for one in smallest
            ],
        },
        fix=fix,
    )
