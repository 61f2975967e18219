"""Planning: from a goal, or from an earlier plan and changes, to everything a run needs; starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from mcp.server.mcpserver import Context
from mcp.types import ToolAnnotations
from pydantic import Field

from whet.engine import api

from ..results import FoundOut, Result, call
from .changes import (
    ACCEPT,
    TEMPLATE,
    Changes,
    check_accepted,
    check_sources,
    confined,
    merged,
    restored,
    unnamed,
)
from .reading import Progress, read
from .toolsets import WRITES, Toolset

GIB = 1 << 30
SHOWN = (
    "model.name", "model.precision", "model.max_length", "data.train", "data.eval", "data.eval_fraction",
    "data.format", "data.columns", "data.template", "data.drop", "data.bad_rows", "method.kind",
    "adapter.kind", "adapter.rank", "adapter.alpha", "adapter.target_modules",
    "adapter.modules_to_save", "adapter.train_embeddings", "training.epochs", "training.batch_size",
    "training.gradient_accumulation", "training.embedding_learning_rate", "training.learning_rate",
    "training.scheduler", "training.warmup", "training.optimizer",
    "training.precision", "training.gradient_checkpointing", "training.max_memory_gib", "eval.every",
    "eval.early_stopping", "export.gguf", "export.merged", "hardware.gpus", ACCEPT,
)  # fmt: skip
"""Keys of a configuration that are told; what stays at its default beside these decides nothing."""
OF_METHOD = ("supervise", "packing", "loss")
"""Settings of a method that are told at their default, too, where it has them."""
SAME = {
    "data": "data.train",
    "model": "model.name",
    "eval_data": "data.eval",
    "export": "export.gguf",
    "max_memory_gib": "training.max_memory_gib",
}
"""Arguments of a new plan, and the keys that change the same in an earlier one."""
PLANNER = "planner: "

Limit = Annotated[float | None, Field(gt=0)]


class PlanResult(Result):
    """Everything about a run before it starts."""

    plan_id: str
    blocked: list[str]
    configuration: dict[str, Any]
    reasons: dict[str, str]
    steps: int
    minutes: float | None
    memory_gib: dict[str, float]
    alternatives: list[dict[str, Any]]
    findings: list[FoundOut]
    notes: list[str]


class PlanTools(Toolset):
    """From a goal to a plan with an id."""

    name: ClassVar[str] = "plan"
    tools: ClassVar[dict[str, ToolAnnotations]] = {"plan_create": WRITES}

    async def plan_create(
        self,
        context: Context[Any, Any],
        data: Annotated[str | list[str] | None, Field(description="Path, hub id, demo.")] = None,
        model: Annotated[str | None, Field(description="Chosen when left out.")] = None,
        goal: Literal["quality", "speed", "memory"] = "quality",
        method: str = "auto",
        max_minutes: Limit = None,
        max_memory_gib: Limit = None,
        eval_data: str | None = None,
        export: Annotated[list[str] | None, Field(description="GGUF types.")] = None,
        changes: Annotated[dict[str, Any] | None, Field(description="Recipe keys; a fix as it is.")] = None,
        base_plan_id: Annotated[str | None, Field(description="Plan to change.")] = None,
    ) -> PlanResult:
        """A whole configuration from a goal (data), or an earlier plan with changes. Starts nothing."""
        asked = {
            "data": data,
            "model": model,
            "goal": None if goal == "quality" else goal,
            "method": None if method == "auto" else method,
            "max_minutes": max_minutes,
            "max_memory_gib": max_memory_gib,
            "eval_data": eval_data,
            "export": export,
        }
        if base_plan_id is None:
            planned = partial(self._proposed, asked, changes or {})
        else:
            planned = partial(self._changed, base_plan_id, changes or {}, asked)
        return await read(planned, context)

    def _proposed(self, asked: dict[str, Any], changes: Changes, progress: Progress) -> PlanResult:
        """A new plan, from a goal."""
        wanted = confined(changes, self.root)
        if asked["data"] is None:
            raise api.WhetError(
                "plan.no_data",
                "A plan needs data, or an earlier plan as base_plan_id.",
                f"{call('plan_create', data='demo', model='demo')} shows the whole way on small things.",
            )
        here = confined({SAME[name]: asked[name] for name in ("data", "model", "eval_data")}, self.root)
        wanted = restored(wanted, lambda: self._plain(here, wanted, progress).findings)
        proposal = api.propose(
            api.Goal(
                data=here["data.train"],
                model=here["model.name"],
                eval_data=here["data.eval"],
                priority=asked["goal"] or "quality",
                method=asked["method"] or "auto",
                max_minutes=asked["max_minutes"],
                max_memory_gib=asked["max_memory_gib"],
                export=asked["export"],
                overrides=wanted,
            ),
            progress,
        )
        check_accepted(proposal.plan)
        options = [
            {
                "what": one.text,
                "why": one.why,
                "minutes": one.minutes,
                "memory_gib": round(one.memory_gib, 1),
                "changes": one.patch,
            }
            for one in proposal.alternatives
        ]
        notes = [*proposal.changed, *proposal.unmet, *proposal.passed_over]
        return _result(proposal.plan, wanted, proposal.reasons, options, notes, len(proposal.unmet))

    def _changed(
        self, base_plan_id: str, changes: Changes, asked: dict[str, Any], progress: Progress
    ) -> PlanResult:
        """An earlier plan's recipe with changes, planned again."""
        changes = confined(changes, self.root)
        given = {name: value for name, value in asked.items() if value is not None}
        if given:
            same = {SAME[name]: value for name, value in given.items() if name in SAME}
            raise api.WhetError(
                "plan.base_only",
                f"With base_plan_id only changes are taken, not {', '.join(given)}.",
                call("plan_create", base_plan_id=base_plan_id, changes={**same, **changes}),
            )
        base = api.kept_plan(base_plan_id)
        check_sources(base, self.root, except_for=changes)
        changes = restored(changes, lambda: base.findings)
        plan = api.plan(api.patched(base.recipe, changes), overrides=list(changes), progress=progress)
        check_accepted(plan, before=base.recipe.accept)
        options = [
            {"what": one.text, "memory_gib": round(one.memory.needed / GIB, 1), "changes": one.patch}
            for one in plan.alternatives
        ]
        return _result(plan, changes, {}, options, [], 0)

    def _plain(self, sources: Changes, changes: Changes, progress: Progress) -> api.Plan:
        """What dataset_inspect saw: the plan without a goal, and without what is still to be found."""
        if sources["model.name"] is None:
            raise api.WhetError(
                "changes.reference",
                "A fix that names a finding's text needs the model that was looked at.",
                "Name the model as well, or leave the key out.",
            )
        named = {"model": {"name": sources["model.name"]}, "data": {"train": sources["data.train"]}}
        return api.plan(api.patched(api.Recipe.model_validate(named), unnamed(changes)), progress=progress)


def _result(
    plan: api.Plan,
    changes: Changes,
    reasons: dict[str, str],
    options: list[dict[str, Any]],
    notes: list[str],
    unmet: int,
) -> PlanResult:
    """Keep the plan, and tell of it what an agent and a person decide by."""
    plan_id = api.keep_plan(plan)
    blocked = [FoundOut.of(one) for one in plan.blocked()]
    minutes = None if plan.seconds is None else round(plan.seconds / 60, 1)
    configuration = _configuration(plan, changes)
    return PlanResult(
        summary=_summary(plan, minutes, blocked),
        next=_next(plan, blocked),
        warnings=_warnings(blocked, unmet),
        plan_id=plan_id,
        blocked=list(dict.fromkeys(one.id for one in blocked)),
        configuration=configuration,
        reasons=_reasons(plan, reasons, configuration),
        steps=plan.resolved.total_steps,
        minutes=minutes,
        memory_gib=_memory(plan),
        alternatives=options,
        findings=[FoundOut.of(one) for one in plan.findings],
        notes=notes,
    )


def _summary(plan: api.Plan, minutes: float | None, blocked: Sequence[FoundOut]) -> str:
    memory, train = plan.memory, plan.data.report.train
    time = "an unknown time" if minutes is None else f"about {max(minutes, 0.1):,g} minutes"
    start = f"blocked by {', '.join(sorted({one.id for one in blocked}))}" if blocked else "ready to start"
    ranks, strategy = plan.resolved.ranks, plan.resolved.strategy
    each = f" on each of {ranks} ranks ({strategy})" if ranks > 1 else ""
    return (
        f"{plan.resolved.total_steps:,} steps on {train.rows:,} rows in {time}, "
        f"{memory.needed / GIB:.1f} of {memory.capacity / GIB:.0f} GiB{each}: {start}."
    )


def _next(plan: api.Plan, blocked: Sequence[FoundOut]) -> list[str]:
    """Start; or mend what blocks, or look at it. To accept comes last: that is for a person to say."""
    if not blocked:
        start = call("run_start", plan_id=plan.id, idempotency_key=f"start-{plan.id}")
        better = merged(FoundOut.of(one) for one in plan.findings if one.severity == "warning")
        return [start, *([call("plan_create", base_plan_id=plan.id, changes=better)] if better else [])]
    fixes = merged(blocked)
    if not fixes and not plan.memory.fits:
        fixes = next((one.patch for one in plan.alternatives if one.memory.fits), {})
    calls = [call("plan_create", base_plan_id=plan.id, changes=fixes)] if fixes else _looks(plan, blocked)
    if acceptable := _acceptable(blocked):
        accept = {ACCEPT: list(dict.fromkeys([*plan.recipe.accept, *acceptable]))}
        calls.append(call("plan_create", base_plan_id=plan.id, changes=accept))
    return calls


def _looks(plan: api.Plan, blocked: Sequence[FoundOut]) -> list[str]:
    """Calls that show what no fix of whet's mends, by the first letter of a finding's id."""
    model, data = plan.recipe.model.name, plan.recipe.data.train
    source = data if isinstance(data, str) else data[0]
    looks = {
        "D": call("dataset_inspect", data=source, model=model),
        "E": call("env_inspect", fresh=True),
    }
    of_model = call("model_inspect", model=model)
    return list(dict.fromkeys(looks.get(one.id[0], of_model) for one in blocked))


def _acceptable(blocked: Sequence[FoundOut]) -> list[str]:
    """Ids that a person may accept."""
    return list(dict.fromkeys(id for one in blocked for id in one.fix.get(ACCEPT, ())))


def _warnings(blocked: Sequence[FoundOut], unmet: int) -> list[str]:
    warnings = [one.warning() for one in blocked]
    if acceptable := _acceptable(blocked):
        ids = ", ".join(acceptable)
        warnings.append(f"Accept {ids} (the last call of next) only if the person says so: ask them.")
    if not all(one.fix for one in blocked):
        warnings.append("What has no fix must be mended outside: see the findings' advice, then plan again.")
    if unmet:
        warnings.append(f"{unmet} wish(es) are not met, or could not be checked: see notes.")
    return warnings


def _configuration(plan: api.Plan, changes: Changes) -> dict[str, Any]:
    """Values in force by recipe key, empty ones left out; a template's text by a word."""
    method = plan.recipe.method
    told = (
        name for name in type(method).model_fields if name in OF_METHOD or name in method.model_fields_set
    )
    own = [f"method.{name}" for name in told]
    keys = dict.fromkeys([*SHOWN, *own, *(key for key in changes if key in plan.origins)])
    found = {key: _value(plan, key) for key in keys}
    if isinstance(found[TEMPLATE], str) and "{" in found[TEMPLATE]:
        found[TEMPLATE] = "a text"
    return {key: value for key, value in found.items() if value not in (None, [], {}, False, 0.0)}


def _value(plan: api.Plan, key: str) -> Any:
    """What the planner resolved, else what the recipe says."""
    for name, known in api.RECIPE_KEYS.items():
        if known == key:
            return getattr(plan.resolved, name)
    value: Any = plan.recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _reasons(plan: api.Plan, said: dict[str, str], configuration: dict[str, Any]) -> dict[str, str]:
    """Why the values are what they are, where there is more to say than that they were asked for."""
    planner = {
        key: origin.removeprefix(PLANNER)
        for key, origin in plan.origins.items()
        if origin.startswith(PLANNER) and key in configuration
    }
    return {**planner, **{key: reason for key, reason in said.items() if reason != "asked for"}}


def _memory(plan: api.Plan) -> dict[str, float]:
    parts = {**plan.memory.components, "needed": plan.memory.needed, "capacity": plan.memory.capacity}
    return {name: round(size / GIB, 2) for name, size in parts.items()}
