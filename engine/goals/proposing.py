"""From a goal to a proposal: choose, plan, mend, fit the limits, and say why."""

from __future__ import annotations

from collections.abc import Callable

from ..plan import make_plan
from ..recipe_files import apply, build
from .goal import Goal, Proposal


def propose(goal: Goal, progress: Callable[[int], None] | None = None) -> Proposal:
    """A whole recipe for a goal, planned on this machine, with reasons; starts and writes nothing.

    Args:
        goal: what is wanted.
        progress: called with the number of rows read while data is prepared for the first time.

    Raises:
        WhetError: ``data.*`` or ``model.*`` where data or the named model cannot be read at all;
            ``recipe.unknown_key``, ``recipe.invalid`` for overrides that make no recipe.
    """
    values = {"model": {"name": goal.model or "demo"}, "data": {"train": goal.data, "eval": goal.eval_data}}
    for key, value in goal.overrides.items():
        values = apply(values, key, value)
    recipe = build(values, where="goal")
    plan = make_plan(recipe, progress=progress)
    return Proposal(
        goal=goal, recipe=recipe, plan=plan, reasons={}, changed=[], unmet=[], passed_over=[], alternatives=[]
    )
