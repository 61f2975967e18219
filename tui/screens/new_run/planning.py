"""What the screen asks the engine: plans and proposals, one at a time, the newest wish last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.engine import api

from .draft import Draft


@dataclass
class Answer:
    """Of one piece of work: for which text, and a plan or why there is none."""

    text: str
    proposal: api.Proposal | None = None
    plan: api.Plan | None = None
    template: api.TemplateView | None = None
    uses: Sequence[api.Use] = ()
    encoders: Sequence[str] = ()
    problem: api.WhetError | None = None


class Planner:
    """Keeps what is wanted until the work before it is done: reading a large file twice helps nobody.

    Args:
        run: does work on a thread and hands its answer to a function on the app's own.
        done: takes each answer.
    """

    def __init__(
        self,
        run: Callable[[Callable[[], Answer], Callable[[Answer], None]], None],
        done: Callable[[Answer], None],
    ) -> None:
        self._run, self._done = run, done
        self.busy = False
        self.rows_read = 0
        self._wanted: Callable[[], Answer] | None = None

    def propose(self, draft: Draft) -> None:
        """Propose for the draft's goal."""
        goal = draft.goal()
        self._ask(lambda: proposed(goal, self._read))

    def plan(self, draft: Draft, rows: int) -> None:
        """Plan the draft's text, with so many rows for the X-ray."""
        text = draft.text
        self._ask(lambda: planned(text, rows, self._read))

    @property
    def waiting(self) -> bool:
        """Whether there is newer work than that being done."""
        return self._wanted is not None

    def failed(self) -> None:
        """The work broke down; go on with what is wanted since."""
        self.busy = False
        self._begin()

    def _ask(self, work: Callable[[], Answer]) -> None:
        self._wanted = work
        self._begin()

    def _begin(self) -> None:
        if self.busy or self._wanted is None:
            return
        work, self._wanted = self._wanted, None
        self.busy, self.rows_read = True, 0
        self._run(work, self._answered)

    def _answered(self, answer: Answer) -> None:
        self.busy = False
        self._begin()
        self._done(answer)

    def _read(self, rows: int) -> None:
        self.rows_read = rows


def proposed(goal: api.Goal, progress: Callable[[int], None]) -> Answer:
    """A proposal, or why there is none."""
    try:
        proposal = api.propose(goal, progress)
    except api.WhetError as error:
        return Answer("", problem=error)
    kind = proposal.recipe.method.kind
    return Answer(proposal.to_yaml(), proposal, proposal.plan, uses=proposal.uses, encoders=_encoders(kind))


def planned(text: str, rows: int, progress: Callable[[int], None]) -> Answer:
    """A plan and how its rows are rendered, or why there is none."""
    try:
        recipe = api.recipe_from_text(text)
        plan = api.plan(recipe, progress=progress)
    except api.WhetError as error:
        return Answer(text, problem=error)
    template, uses = _template(recipe, rows, progress), _uses(recipe)
    return Answer(text, plan=plan, template=template, uses=uses, encoders=_encoders(recipe.method.kind))


def _uses(recipe: api.Recipe) -> Sequence[api.Use]:
    values: dict[str, Any] = recipe.model_dump(include={"model", "data"}, exclude_unset=True)
    try:
        return api.row_uses(values)
    except api.WhetError:
        return ()  # the plan says what is wrong with them


def _encoders(kind: str) -> Sequence[str]:
    return api.method_models(kind, [Path.cwd()])


def _template(recipe: api.Recipe, rows: int, progress: Callable[[int], None]) -> api.TemplateView | None:
    values: dict[str, Any] = recipe.model_dump(include={"model", "data", "method"}, exclude_unset=True)
    try:
        return api.template_view(values, rows, progress=progress)
    except api.WhetError:
        return None  # the plan's findings say what is wrong with rows or template


def effect_of(text: str, before: list[api.Finding]) -> str:
    """What a fixed recipe's plan says, in two lines: rows and steps, what is mended and what is left."""
    try:
        plan = api.plan(api.recipe_from_text(text))
    except api.WhetError as error:
        return f"the fixed recipe cannot be planned: {error.message}"
    mended = kinds(before) - kinds(plan.findings)
    gone = ", ".join(dict.fromkeys(id for id, _ in mended)) or "nothing"
    left = ", ".join(dict.fromkeys(one.id for one in plan.findings if one.severity != "note"))
    rows, steps = plan.data.report.train.token_rows, plan.resolved.total_steps
    return (
        f"then {rows:,} rows train in {steps:,} steps; mended: {gone}; left: {left or 'no error, no warning'}"
    )


def kinds(findings: list[api.Finding]) -> Counter[tuple[str, str]]:
    """How many findings there are of each id and severity."""
    return Counter((one.id, one.severity) for one in findings)
