"""A plan on one screen: what will happen, where each value comes from, what was found."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from whet.engine.api import RECIPE_KEYS, Plan

from .findings import findings_block
from .text import plain
from .units import amount, duration, size


def plan_summary(plan: Plan) -> RenderableType:
    """The facts a person checks before starting: a dozen lines and the findings."""
    resolved, report = plan.resolved, plan.data.report
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    parameters = plan.model.parameters.total
    share = resolved.trainable_parameters / parameters
    table.add_row(
        "model", f"{plain(plan.recipe.model.name)}, {plan.model.family}, {amount(parameters)} parameters"
    )
    table.add_row(
        "trains",
        f"{plan.recipe.adapter.kind}, {amount(resolved.trainable_parameters)} parameters ({share:.1%}), "
        f"base in {resolved.base_precision}, compute in {resolved.compute_dtype}",
    )
    held_out = f", {report.eval.token_rows:,} held out" if report.eval else ""
    table.add_row(
        "data",
        f"{report.train.token_rows:,} rows{held_out}, {amount(report.train.tokens)} tokens, "
        f"{report.train.supervised_tokens / max(1, report.train.tokens):.0%} supervised, "
        f"format {report.format.format}, template {resolved.template or 'none'}",
    )
    table.add_row(
        "steps",
        f"{resolved.total_steps} of {resolved.rows_per_step} rows "
        f"({resolved.batch_size} × {resolved.gradient_accumulation}), {resolved.epochs:.3g} epochs, "
        f"{resolved.optimizer}, learning rate {plan.recipe.training.learning_rate:g}",
    )
    where = "GPU memory" if plan.memory.where == "gpu" else "memory"
    table.add_row(
        "needs",
        f"{size(plan.memory.needed)} of {size(plan.memory.available)} {where}, "
        f"{size(sum(plan.disk_bytes.values()))} disk",
    )
    time = "unknown before the first run on this machine" if plan.seconds is None else duration(plan.seconds)
    table.add_row("time", f"{time} on {resolved.machine}")
    parts: list[RenderableType] = [table]
    if plan.findings:
        parts += ["", findings_block(plan.findings)]
    return Group(*parts)


def plan_details(plan: Plan) -> RenderableType:
    """The summary, memory by component, the settings with their origin, and the alternatives."""
    parts: list[RenderableType] = [plan_summary(plan), Text("\nmemory", style="bold"), _memory(plan)]
    if plan.alternatives:
        parts.append(Text("\nalternatives", style="bold"))
        for other in plan.alternatives:
            patch = " ".join(f"{key}={value}" for key, value in other.patch.items())
            parts.append(Text(f"{size(other.memory.needed):>9}  {other.text}  {patch}"))
    parts += [Text("\nsettings not left at their default", style="bold"), _origins(plan)]
    parts.append(Text(f"\nplan {plan.id}", style="dim"))
    return Group(*parts)


def _memory(plan: Plan) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, count in plan.memory.components.items():
        if count:
            table.add_row(name, size(count))
    return table


def _origins(plan: Plan) -> Table:
    values = plan.recipe.model_dump(mode="json")
    table = Table.grid(padding=(0, 2))
    for key, origin in plan.origins.items():
        if origin == "default":
            continue
        table.add_row(key, plain(str(_value(plan, values, key)), 60), Text(origin, style="dim"))
    return table


def _value(plan: Plan, values: dict[str, object], key: str) -> object:
    """What will be used: the resolved value where the planner decided, else the recipe's."""
    for field, recipe_key in RECIPE_KEYS.items():
        if recipe_key == key:
            return getattr(plan.resolved, field)
    value: object = values
    for part in key.split("."):
        assert isinstance(value, dict)
        value = value[part]
    return value
