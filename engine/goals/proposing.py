"""From a goal to a proposal: choose, plan, mend, fit the limits, and say why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

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
from .methods import FROM_CHAT, method_of, recipe_of
from .options import find_options
from .search import Attempt, Search

NO_OTHER = (
    "no other model that fits is here or can come; the demo model is for learning only: name a real one when "
    "you have it"
)


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
            ``recipe.unknown_key``, ``recipe.invalid`` for overrides that make no recipe; ``goal.method``.
    """
    if machine is None:
        machine = inspect_machine()
        surroundings = surroundings or inspect_surroundings(machine)
    return _Proposing(goal, progress, machine, surroundings or Surroundings()).run()


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
        look = look_at(first.recipe().data, progress)
        asked = first.recipe().method.kind if {"method", "method.kind"} & set(first.pinned) else None
        self.method, self.why_method = method_of(goal, look, asked)
        self.look = look if self.method == "sft" else replace(look, layout=None)
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
            attempt = self.attempt(self.named, True)
        else:
            attempt, passed = self.choose()
        draft = attempt.draft
        plan = self.plan_of(draft.recipe())
        self._say_limits(draft, plan)
        return Proposal(
            goal=self.goal,
            recipe=draft.recipe(),
            plan=plan,
            reasons=_said(draft, self.machine),
            changed=draft.changed,
            unmet=draft.unmet,
            uses=self.look.uses,
            passed_over=passed,
            alternatives=find_options(draft, plan, self.limits),
        )

    # --- one model

    def attempt(self, model: str, cut: bool) -> Attempt:
        """The settings for one model; ``cut``: at any price within the time."""
        draft = Draft.of(self.goal, model, self.method, self.why_method)
        rules.before_reading(draft, self.look)
        plan = self.plan_of(draft.recipe())
        self._decide(draft, plan, self.look)
        plan = mend(draft, self.plan_of(draft.recipe()), self.plan_of)
        if "data.drop" in draft.values:  # fewer rows than were counted
            rules.training(draft, plan.model, self.machine, plan)
            rules.evaluation(draft)
            plan = self.plan_of(draft.recipe())
        plan = fit_memory(draft, plan, self.limits)
        if self.goal.priority == "speed":
            plan = faster_products(draft, plan, self.limits)
        plan = fit_time(draft, plan, self.limits, cut=cut)
        return Attempt(draft, plan)

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

    def choose(self) -> tuple[Attempt, list[str]]:
        """The model that suits the goal best, and those that were passed over for it."""
        if self.method != "sft" and self.method not in FROM_CHAT:
            return self.usual()
        capacity = capacity_of(self.machine) / GIB
        found = candidates(self.goal, self.machine, capacity, text=self.look.layout == "text")
        search = Search(self.goal, self.attempt, list(found.passed_over))
        entry, attempt = search.run(found.entries)
        cut = "training.max_steps" in attempt.draft.values
        attempt.draft.reasons["model.name"] = self._why(entry, attempt.plan, cut)
        return attempt, search.passed

    def usual(self) -> tuple[Attempt, list[str]]:
        """The model of the method's own recipe; the demo model where that cannot be had."""
        name = recipe_of(self.method).model.name
        try:
            attempt = self.attempt(name, True)
        except WhetError as error:
            if not error.code.startswith(("model.", "tokenizer.")):
                raise
            attempt = self.attempt(DEMO, True)
            attempt.draft.reasons["model.name"] = NO_OTHER
            return attempt, [f"{name}: {error.message}"]
        attempt.draft.reasons["model.name"] = f"as whet's recipe {recipe_of(self.method).name} has it"
        return attempt, []

    def _why(self, entry: ModelEntry, plan: Plan, cut: bool) -> str:
        if entry.source == DEMO:
            return NO_OTHER
        kind = "instruct model" if entry.chat else "base model"
        where = "is on this machine" if entry.here else "can be downloaded"
        size = "largest" if self.goal.priority == "quality" and self.machine.gpus else "smallest useful"
        choice = f"the {size} {kind} that {where} and meets the limits"
        if cut or not plan.memory.fits:
            choice = (
                f"no model meets the limits with all of the data, and of those tried this {kind} is nearest"
            )
        return (
            f"{choice}: {entry.parameters / 1e9:.1f} billion parameters, {plan.memory.needed / GIB:.1f} of "
            f"{plan.memory.capacity / GIB:.0f} GiB"
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


def _said(draft: Draft, machine: Machine) -> dict[str, str]:
    """Reasons by key, and a word on a machine without a GPU."""
    said: dict[str, str] = {}
    if not machine.gpus:
        said[MACHINE] = (
            f"no GPU is seen{f' ({machine.gpu_note})' if machine.gpu_note else ''}: {machine.cpu_count} CPU "
            "cores train many times slower than a GPU, so the configuration is small"
        )
    return {**said, **draft.reasons}
