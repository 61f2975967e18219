"""From a goal to a proposal: choose, plan, mend, fit the limits, and say why."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..checks.network import DownloadFailed
from ..errors import WhetError
from ..fitting import capacity_of
from ..hardware import Machine, inspect_machine, with_memory
from ..models.listing import ModelEntry
from ..plan import Plan, make_plan
from ..recipe import Recipe
from ..surroundings import Surroundings, inspect_surroundings
from . import rules
from .choosing import DEMO, candidates
from .draft import Draft, Look, look_at
from .goal import MACHINE, Goal, Proposal
from .limits import GIB, Limits, duration, faster_products, fit_memory, fit_time, late, mend
from .options import find_options

TRIES = 4
"""Models that are tried before the best of them is cut to the limit."""
ROUGHLY = 1.5
"""How far time may be from following a model's size before one is not even tried."""


def propose(
    goal: Goal,
    progress: Callable[[int], None] | None = None,
    *,
    machine: Machine | None = None,
    surroundings: Surroundings | None = None,
) -> Proposal:
    """A whole recipe for a goal, planned on this machine, with reasons; starts and writes nothing.

    Args:
        goal: what is wanted.
        progress: called with the number of rows read while data is looked through for the first time.
        machine: plan for this machine instead of the one at hand.
        surroundings: of that machine.

    Raises:
        WhetError: ``data.*`` or ``model.*`` where data or the named model cannot be read at all;
            ``recipe.unknown_key``, ``recipe.invalid`` for overrides that make no recipe.
    """
    if machine is None:
        machine = inspect_machine()
        surroundings = surroundings or inspect_surroundings(machine)
    return _Proposing(goal, progress, machine, surroundings or Surroundings()).run()


@dataclass
class _Attempt:
    """One model's draft and its plan."""

    draft: Draft
    plan: Plan


class _Proposing:
    """The steps of one proposal, on one machine."""

    def __init__(
        self,
        goal: Goal,
        progress: Callable[[int], None] | None,
        machine: Machine,
        surroundings: Surroundings,
    ) -> None:
        self.goal, self.progress, self.surroundings = goal, progress, surroundings
        self.whole = machine
        first = Draft.of(goal, goal.model or DEMO)
        most = first.recipe().training.max_memory_gib
        self.machine = machine if most is None else with_memory(machine, int(most * GIB))
        self.overrides = tuple(first.pinned)
        self.named = first.pinned.get("model.name", goal.model)
        self.look = look_at(first.recipe().data, progress)
        self.limits = Limits(self.plan_of, self.machine, goal.max_minutes)

    def plan_of(self, recipe: Recipe) -> Plan:
        return make_plan(
            recipe,
            overrides=self.overrides,
            progress=self.progress,
            machine=self.whole,
            surroundings=self.surroundings,
        )

    def run(self) -> Proposal:
        passed: list[str] = []
        if self.named is not None:
            attempt = self.attempt(self.named, cut=True)
        else:
            attempt, passed = self.choose()
        draft = attempt.draft
        plan = self.plan_of(draft.recipe())
        self._say_limits(draft, plan)
        return Proposal(
            goal=self.goal,
            recipe=draft.recipe(),
            plan=plan,
            reasons=_said(draft, plan, self.machine),
            changed=draft.changed,
            unmet=draft.unmet,
            passed_over=passed,
            alternatives=find_options(draft, plan, self.limits),
        )

    # --- one model

    def attempt(self, model: str, *, cut: bool) -> _Attempt:
        """The settings for one model; ``cut``: at any price within the time."""
        draft = Draft.of(self.goal, model)
        rules.before_reading(draft, self.look)
        plan = self.plan_of(draft.recipe())
        self._decide(draft, plan, self.look)
        plan = mend(draft, self.plan_of(draft.recipe()), self.plan_of)
        plan = fit_memory(draft, plan, self.limits)
        if self.goal.priority == "speed":
            plan = faster_products(draft, plan, self.limits)
        plan = fit_time(draft, plan, self.limits, cut=cut)
        return _Attempt(draft, plan)

    def _decide(self, draft: Draft, plan: Plan, look: Look) -> None:
        facts, report = plan.model, plan.data.report
        rules.length(draft, facts, report.train, report.format.format)
        rules.adapter(draft, facts)
        rules.training(draft, facts, self.machine, plan)
        rules.evaluation(draft)
        rules.precision(draft, facts, self.machine)
        rules.sampling(draft, plan, look)
        rules.export(draft, facts)

    # --- several

    def choose(self) -> tuple[_Attempt, list[str]]:
        """The first model, best first, whose plan meets the limits; else the cheapest tried, cut to them."""
        capacity = capacity_of(self.machine) / GIB
        found = candidates(self.goal, self.machine, capacity, text=self.look.layout == "text")
        passed, online, most = list(found.passed_over), True, math.inf
        tried: list[tuple[ModelEntry, _Attempt]] = []
        for entry in found.entries:
            if len(tried) == TRIES or (entry.source == DEMO and tried):
                break
            if (not entry.here and not online) or entry.parameters > most:
                continue
            try:
                attempt = self.attempt(entry.name, cut=False)
            except WhetError as error:
                if not error.code.startswith(("model.", "tokenizer.")):
                    raise
                passed.append(f"{entry.name}: {error.message}")
                online = online and not _unreachable(error)
                continue
            tried.append((entry, attempt))
            if self._meets(attempt.plan):
                break
            passed.append(f"{entry.name}: {self._why_not(attempt.plan)}.")
            most = min(most, self._most_parameters(entry, attempt.plan))
        assert tried, "the demo model is always there"
        entry, attempt = tried[-1]
        if not self._meets(attempt.plan) and (smallest := self._smallest(found.entries, online, tried)):
            tried.append(smallest)
            entry, attempt = smallest
        if not self._meets(attempt.plan):
            entry, attempt = min(tried, key=lambda one: _cost(one[1].plan))
            attempt = self.attempt(entry.name, cut=True)
            passed = [line for line in passed if not line.startswith(f"{entry.name}:")]
        attempt.draft.reasons["model.name"] = self._why(entry, attempt.plan)
        return attempt, passed

    def _smallest(
        self, entries: list[ModelEntry], online: bool, tried: list[tuple[ModelEntry, _Attempt]]
    ) -> tuple[ModelEntry, _Attempt] | None:
        """The smallest model that can be had, where none of the larger ones meets the limits."""
        names = {entry.name for entry, _ in tried}
        rest = [one for one in entries if one.source != DEMO and one.name not in names]
        rest = [one for one in rest if one.here or online]
        if not rest:
            return None
        entry = min(rest, key=lambda one: one.parameters)
        return entry, self.attempt(entry.name, cut=False)

    def _meets(self, plan: Plan) -> bool:
        return plan.memory.fits and not late(plan, self.goal.max_minutes)

    def _most_parameters(self, entry: ModelEntry, plan: Plan) -> float:
        """Of a model that may be quick enough, where this one was not: time follows size."""
        if not late(plan, self.goal.max_minutes) or plan.seconds is None or self.goal.max_minutes is None:
            return math.inf
        return entry.parameters * ROUGHLY * 60 * self.goal.max_minutes / plan.seconds

    def _why_not(self, plan: Plan) -> str:
        if not plan.memory.fits:
            return f"needs {plan.memory.needed / GIB:.1f} GiB of {plan.memory.capacity / GIB:.1f}"
        return f"takes about {duration(plan.seconds or 0)}, {self.goal.max_minutes:g} minutes are allowed"

    def _why(self, entry: ModelEntry, plan: Plan) -> str:
        if entry.source == DEMO:
            return (
                "no other model is here or can come; the demo model is for learning only, so name a real one "
                "when you have it"
            )
        kind = "instruct model" if entry.chat else "base model"
        where = "is on this machine" if entry.here else "can be downloaded"
        size = "largest" if self.goal.priority == "quality" and self.machine.gpus else "smallest useful"
        return (
            f"the {size} {kind} that {where} and meets the limits: {entry.parameters / 1e9:.1f} billion "
            f"parameters, {plan.memory.needed / GIB:.1f} of {plan.memory.capacity / GIB:.0f} GiB"
        )

    # --- what is left to say

    def _say_limits(self, draft: Draft, plan: Plan) -> None:
        limit = self.goal.max_minutes
        if limit is not None and plan.seconds is None:
            draft.unmet.append(
                f"Whether it takes less than {limit:g} minutes is unknown: nothing is known of the speed of "
                f"{self.machine.label} yet. A trial of a few steps will tell (training.max_steps=20)."
            )
        elif late(plan, self.goal.max_minutes) and plan.seconds is not None:
            draft.unmet.append(f"It takes about {duration(plan.seconds)}, {limit:g} minutes were asked for.")
        for finding in plan.blocked():
            draft.unmet.append(f"{finding.id}: {finding.title}")


def _cost(plan: Plan) -> tuple[bool, float, int]:
    """The least is the plan to cut where none meets the limits."""
    return not plan.memory.fits, plan.seconds or 0.0, plan.memory.needed


def _unreachable(error: WhetError) -> bool:
    return isinstance(error, DownloadFailed) and error.failed.kind in ("offline", "unreachable")


def _said(draft: Draft, plan: Plan, machine: Machine) -> dict[str, str]:
    """Reasons by key, the planner's own choices after those of the goal, and a word on a machine without a
    GPU."""
    said: dict[str, str] = {}
    if not machine.gpus:
        said[MACHINE] = (
            f"no GPU is seen{f' ({machine.gpu_note})' if machine.gpu_note else ''}: {machine.cpu_count} CPU "
            "cores train many times slower than a GPU, so the configuration is small"
        )
    return {**said, **draft.reasons}
