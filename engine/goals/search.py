"""Try models one after the other until the plan of one meets the limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from ..checks.network import DownloadFailed
from ..errors import WhetError
from ..models.listing import ModelEntry
from ..plan import Plan
from .choosing import DEMO
from .draft import Draft
from .goal import Goal
from .limits import GIB, duration, late

TRIES = 4
"""Models that are planned before the cheapest of them is cut to the limits."""
ROUGHLY = 1.5
"""How far time may be from following a model's size before one is not even tried."""


@dataclass(frozen=True)
class Attempt:
    """One model's draft and its plan."""

    draft: Draft
    plan: Plan


@dataclass
class Search:
    """What was tried, and why it was not taken.

    Args:
        goal: its limits count.
        attempt: the settings for a model by name; ``True`` cuts them to the time limit at any price.
        passed: one line for each model that was passed over.
    """

    goal: Goal
    attempt: Callable[[str, bool], Attempt]
    passed: list[str]
    online: bool = True
    tried: list[tuple[ModelEntry, Attempt]] = field(default_factory=list)

    def run(self, entries: list[ModelEntry]) -> tuple[ModelEntry, Attempt]:
        """The first of ``entries`` that meets the limits; where none does, the cheapest, cut to them.

        Only what cannot be had ends a model's turn; errors of the data are raised.
        """
        most = math.inf
        for entry in entries:
            if len(self.tried) == TRIES or (entry.source == DEMO and self.tried):
                break
            if entry.parameters > most:
                continue
            found = self._try(entry)
            if found is None:
                continue
            if self._meets(found.plan):
                return entry, found
            self.passed.append(f"{entry.name}: {self._why_not(found.plan)}.")
            most = min(most, self._most_parameters(entry, found.plan))
        self._try_smallest(entries)
        entry, _ = min(self.tried, key=lambda one: _cost(one[1].plan))
        self.passed = [line for line in self.passed if not line.startswith(f"{entry.name}:")]
        return entry, self.attempt(entry.name, True)

    def _try(self, entry: ModelEntry) -> Attempt | None:
        if not entry.here and not self.online:
            return None
        try:
            found = self.attempt(entry.name, False)
        except WhetError as error:
            if not error.code.startswith(("model.", "tokenizer.")):
                raise
            self.passed.append(f"{entry.name}: {error.message}")
            if isinstance(error, DownloadFailed) and error.failed.kind in ("offline", "unreachable"):
                self.online = False
            return None
        self.tried.append((entry, found))
        return found

    def _try_smallest(self, entries: list[ModelEntry]) -> None:
        """The smallest that can be had may be left out above; the demo model is none for this."""
        names = {entry.name for entry, _ in self.tried}
        for entry in sorted(entries, key=lambda one: one.parameters):
            if entry.name in names:
                return
            if entry.source != DEMO and self._try(entry) is not None:
                return

    def _meets(self, plan: Plan) -> bool:
        return plan.memory.fits and not late(plan, self.goal.max_minutes)

    def _most_parameters(self, entry: ModelEntry, plan: Plan) -> float:
        """Of a model that may be quick enough, where this one was not: time follows size."""
        limit = self.goal.max_minutes
        if limit is None or plan.seconds is None or not late(plan, limit):
            return math.inf
        return entry.parameters * ROUGHLY * 60 * limit / plan.seconds

    def _why_not(self, plan: Plan) -> str:
        if not plan.memory.fits:
            return f"needs {plan.memory.needed / GIB:.1f} GiB of {plan.memory.capacity / GIB:.1f}"
        return f"takes about {duration(plan.seconds or 0)}, {self.goal.max_minutes:g} minutes are allowed"


def _cost(plan: Plan) -> tuple[bool, float, int]:
    """The least is the plan to cut where none meets the limits."""
    return not plan.memory.fits, plan.seconds or 0.0, plan.memory.needed
