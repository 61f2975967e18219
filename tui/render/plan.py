"""A plan on one screen: what will happen, where each value comes from, what was found."""

from __future__ import annotations

import json

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from whet.engine.api import RECIPE_KEYS, Plan

from .facts import facts
from .findings import findings_block
from .text import override, plain
from .units import amount, duration, size

STRATEGIES = {
    "ddp": "a copy on each (DDP)",
    "fsdp": "weights in shares (FSDP)",
    "deepspeed": "by DeepSpeed",
}
RANKS = {"gpu": "GPUs", "ram": "processes"}
"""By where a rank's memory is."""


def plan_summary(plan: Plan) -> RenderableType:
    """The facts a person checks before starting: a dozen lines and the findings."""
    parts: list[RenderableType] = [plan_facts(plan)]
    if plan.findings:
        parts += [Text(), findings_block(plan.findings)]
    return Group(*parts)


def plan_facts(plan: Plan) -> RenderableType:
    """The same without the findings."""
    resolved, report = plan.resolved, plan.data.report
    parameters = plan.model.parameters.total
    share = resolved.trainable_parameters / parameters
    held_out = f", {report.eval.token_rows:,} held out" if report.eval else ""
    supervised = report.train.supervised_tokens / max(1, report.train.tokens)
    where = "GPU memory" if plan.memory.where == "gpu" else "memory"
    rows: list[tuple[str, str | Text]] = [
        *([("method", resolved.method)] if resolved.method != "sft" else []),
        ("model", f"{plan.recipe.model.name}, {plan.model.family}, {amount(parameters)} parameters"),
        (
            "trains",
            f"{plan.recipe.adapter.kind}, {amount(resolved.trainable_parameters)} parameters ({share:.1%}), "
            f"base in {resolved.base_precision}, compute in {resolved.compute_dtype}",
        ),
        (
            "data",
            f"{report.train.token_rows:,} rows{held_out}, {amount(report.train.tokens)} tokens, "
            f"{supervised:.0%} supervised, format {report.format.name}, "
            f"template {resolved.template or 'none'}"
            if resolved.method in ("sft", "vision")
            else f"{report.train.token_rows:,} rows{held_out}, {amount(report.train.tokens)} tokens, "
            f"{report.format.name}, {report.texts_per_row} text{'s' * (report.texts_per_row != 1)} a row",
        ),
        *_images(plan),
        (
            "steps",
            f"{resolved.total_steps} of {resolved.rows_per_step} {'answers' if resolved.answers else 'rows'} "
            f"({_shares(plan)}), {resolved.epochs:.3g} epochs, "
            f"{resolved.optimizer}, learning rate {_rates(plan)}",
        ),
        (
            "needs",
            f"{size(plan.memory.needed)} of {size(plan.memory.available)} {where}{on_each(plan)}, "
            f"{size(sum(plan.disk_bytes.values()))} disk",
        ),
        *_rewards(plan),
        *_schedule(plan),
        ("time", _time(plan)),
        ("machine", resolved.machine),
        *_gpus(plan),
    ]
    return facts(rows)


def _shares(plan: Plan) -> str:
    """Rows of a micro-batch, micro-batches, and ranks where there are several."""
    resolved = plan.resolved
    ranks = f" × {resolved.ranks} {RANKS[plan.memory.where]}" if resolved.ranks > 1 else ""
    return f"{resolved.batch_size} × {resolved.gradient_accumulation}{ranks}"


def on_each(plan: Plan) -> str:
    """What memory is counted for, where there are several ranks."""
    ranks = plan.resolved.ranks
    return f" on each of {ranks} {RANKS[plan.memory.where]}" if ranks > 1 else ""


def _gpus(plan: Plan) -> list[tuple[str, str | Text]]:
    """How several ranks share the run and why; what more GPUs would bring, where there are some."""
    resolved, reason = plan.resolved, plan.origins["hardware.gpus"].partition(": ")[2]
    if resolved.ranks == 1:
        return [("GPUs", f"1: {plain(reason)}")] if "hardware.gpus=" in reason else []
    words = f"{resolved.ranks}, {STRATEGIES[resolved.strategy]}" + (f": {plain(reason)}" if reason else "")
    if plan.exchange_seconds is not None:
        words += f"; about {1000 * plan.exchange_seconds:,.0f} ms a step for what they exchange"
    return [("GPUs" if plan.memory.where == "gpu" else "processes", words)]


def _images(plan: Plan) -> list[tuple[str, str | Text]]:
    """What rows show, and what that takes; nothing for rows without images."""
    images, train = plan.data.report.images, plan.data.report.train
    if images is None:
        return []
    share = images.tokens / max(1, train.tokens)
    return [
        (
            "images",
            f"{images.images:,} in {images.rows:,} rows, up to {images.most_in_a_row} a row, {share:.0%} of "
            f"the tokens, {amount(images.most_patches_in_a_row)} patches in the largest row",
        )
    ]


def _rates(plan: Plan) -> str:
    ends = plan.resolved.embedding_learning_rate
    rate = f"{plan.recipe.training.learning_rate:g}"
    return rate if ends is None else f"{rate} ({ends:g} for embedding and head)"


def _rewards(plan: Plan) -> list[tuple[str, str | Text]]:
    """What reinforcement learning compares and how; nothing for other methods."""
    method = plan.recipe.method
    if method.kind != "grpo":
        return []
    knobs = method.knobs
    clip = f"-{knobs.epsilon:g} to +{knobs.epsilon if knobs.epsilon_high is None else knobs.epsilon_high:g}"
    parts = [
        f"loss {knobs.loss}, rewards scaled by {knobs.scale_rewards}" if method.variant != "rloo" else "",
        f"{knobs.importance} ratios clipped at {clip}",
        f"beta {method.beta:g}" if method.beta else "no reference",
        f"the last {knobs.overlong_buffer} tokens cost reward" if knobs.overlong_buffer else "",
        f"flat groups exchanged {knobs.dynamic_sampling} times" if knobs.dynamic_sampling else "",
        "cut answers masked" if knobs.mask_truncated else "",
    ]
    rewards = ", ".join(f"{reward.title} × {reward.weight:g}" for reward in method.rewards)
    answers, turns = plan.resolved.answers, plan.resolved.turns
    at_once = f"{answers} at once" if turns == 1 else f"{answers} in {turns} turns as memory allows"
    written = (
        f"{method.num_generations} a prompt, {at_once}, up to "
        f"{method.max_completion_length} tokens, by {method.generation}"
    )
    return [
        ("answers", written),
        ("rewards", plain(rewards)),
        ("variant", f"{method.variant}: {', '.join(part for part in parts if part)}"),
    ]


def _schedule(plan: Plan) -> list[tuple[str, str | Text]]:
    """How a step goes through the GPU; nothing for a model off the fast path."""
    schedule = plan.resolved.schedule
    if schedule is None:
        return []
    times = f"about {schedule.micro_batches:.3g} times" if schedule.micro_batches > 1 else "at once"
    text = f"a step's rows go through {times}, at most {schedule.budget:,} tokens; {schedule.summary()}"
    if not plan.longest_sequence:
        return [("schedule", text)]
    return [("schedule", text), ("longest", f"a row of {plan.longest_sequence:,} tokens would fit")]


def _time(plan: Plan) -> str:
    if plan.seconds is None:
        return "unknown until a run here has set the pace"
    return duration(plan.seconds) if plan.seconds_measured else f"about {duration(plan.seconds)} (predicted)"


def plan_details(plan: Plan) -> RenderableType:
    """The summary, memory by component, the alternatives, and the settings with their origin."""
    parts: list[RenderableType] = [plan_summary(plan), _heading("memory"), _memory(plan)]
    if plan.fitting_gpus is not None:
        parts.append(Text(f"{plan.fitting_gpus} such GPUs would hold it in shares"))
    if plan.longest_by_memory:
        fitting = " · ".join(f"{gb} GB {tokens:,}" for gb, tokens in plan.longest_by_memory.items())
        parts.append(Text(f"longest row, in tokens, that fits a GPU of {fitting}"))
    if plan.alternatives:
        parts.append(_heading("alternatives"))
        for other in plan.alternatives:
            parts.append(Text(f"{size(other.memory.needed):>9}  {plain(other.text)}"))
            parts += [
                Text(f"{'':9}  {override(key, value)}", style="bold") for key, value in other.patch.items()
            ]
    values = plan.recipe.model_dump(mode="json")
    for origin, heading in (("planner", "decided here"), ("recipe", "recipe"), ("override", "overridden")):
        chosen = [key for key, value in plan.origins.items() if value.split(":")[0] == origin]
        if chosen:
            parts += [_heading(heading), _settings(plan, values, chosen)]
    parts.append(Text(f"\nplan {plan.id}; all other settings are at their default", style="dim"))
    return Group(*parts)


def _heading(words: str) -> Text:
    return Text(f"\n{words}", style="bold")


def _memory(plan: Plan) -> Text:
    """Components on one line, largest first."""
    components = sorted(plan.memory.components.items(), key=lambda item: -item[1])
    return Text(" · ".join(f"{name} {size(count)}" for name, count in components if count))


def _settings(plan: Plan, values: dict[str, object], keys: list[str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_column(style="dim")
    for key in keys:
        reason = plan.origins[key].partition(": ")[2]
        table.add_row(Text(key), Text(_shown(_value(plan, values, key))), Text(plain(reason)))
    return table


def _shown(value: object) -> str:
    """As it would be written in a recipe."""
    return plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 80)


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
