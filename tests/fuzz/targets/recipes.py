"""Recipes: as text, as values, with overrides, edited and planned."""

from __future__ import annotations

from random import Random
from typing import Any

import yaml
from fuzz import mutate
from fuzz.case import Case, Fault, Room, Target

from whet.engine import api
from whet.engine.findings import Finding, Fix
from whet.engine.fixing import propose
from whet.engine.recipe_files import (
    SHIPPED,
    build,
    load_recipe,
    patched,
    recipe_from_text,
    settings_paths,
    shipped,
    to_yaml,
)

KEYS = tuple(settings_paths())
PLAIN = ("1", "0.5", "on", "[a, b]", "{a: 1}", "1e-4", "none", "demo", "lora", "[f16]", "auto")
LIKELY: tuple[Any, ...] = (
    *(1, 2, 7, 64, 10**6, 2**31, 2**63, 10**30, 0.0, 0.3, 0.999, 1e-300, 1e300, True, False),
    *("auto", "none", "lora", "dora", "demo", "all-linear", "fp32", "nf4", "q8_0", "chatml", "cosine", "D16"),
    *("q_proj", "lm_head", "f16", "duplicates", "text", "messages", "drop", "skip", "all"),
)


def _text(rng: Random) -> str:
    return (SHIPPED / f"{rng.choice(shipped())}.yaml").read_text(encoding="utf-8")


def _override(rng: Random) -> str:
    key = rng.choice(KEYS) if rng.random() < 0.8 else mutate.text(rng, rng.choice(KEYS))
    said = rng.choice((*PLAIN, str(mutate.odd_value(rng))[:5000]))
    word = f"{key}={said}"
    return word if rng.random() < 0.6 else mutate.text(rng, word)


def make_text(rng: Random) -> Case:
    text = _text(rng).encode()
    changed = mutate.text(rng, text.decode()).encode("utf-8", "surrogatepass")
    content = changed if rng.random() < 0.7 else mutate.data(rng, text)
    overrides = [_override(rng) for _ in range(rng.choice((0, 0, 1, 3)))]
    return Case({"recipe.yaml": content}, {"overrides": overrides, "key": _override(rng)})


def run_text(case: Case, room: Room) -> None:
    """Reads, writes itself as the same recipe again, and is edited by key."""
    recipe = load_recipe(room.files / "recipe.yaml", case.call["overrides"])
    _same_again(recipe)
    key, value = api.parse_override(case.call["key"])
    text = (room.files / "recipe.yaml").read_text(encoding="utf-8")
    finding = Finding(id="D01", severity="error", title="t", fix=Fix(text="f", patch={key: value}))
    propose(text, [finding])


def _same_again(recipe: api.Recipe) -> None:
    text = to_yaml(recipe)
    if ".nan" not in text and recipe_from_text(text) != recipe:
        raise Fault("a recipe that is written and read again is another one")


def make_values(rng: Random) -> Case:
    values = yaml.safe_load(_text(rng))
    if rng.random() < 0.3:
        values.update(yaml.safe_load(_text(rng)))
    return Case(call={"values": mutate.value(rng, values)})


def run_values(case: Case, room: Room) -> None:
    values: Any = case.call["values"]
    if not isinstance(values, dict):
        values = {"model": values, "data": {"train": "demo"}}
    _same_again(build(values))


def make_plan(rng: Random) -> Case:
    """A recipe with changes most of which are valid one by one, so that the planner is reached."""
    values = yaml.safe_load((SHIPPED / "demo.yaml").read_text(encoding="utf-8"))
    recipe = build(values)
    changed: dict[str, Any] = {}
    for key in rng.choices(KEYS, k=20):
        value = rng.choice(rng.choice((LIKELY, LIKELY, mutate.NUMBERS, mutate.TEXTS)))
        value = [value] if rng.random() < 0.2 else value
        if len(changed) < 4 and (_valid(recipe, key, value) or rng.random() < 0.01):
            changed[key] = value
    return Case(call={"values": values, "changed": changed})


def _valid(recipe: api.Recipe, key: str, value: Any) -> bool:
    try:
        patched(recipe, {key: value})
    except api.WhetError:
        return False
    return True


def run_plan(case: Case, room: Room) -> None:
    plan = api.plan(patched(build(case.call["values"]), case.call["changed"]))
    kept = api.keep_plan(plan)
    if api.kept_plan(kept).id != plan.id:
        raise Fault("a kept plan is another one")


TARGETS = (
    Target("recipe-text", make_text, run_text, share=10, in_ci=60),
    Target("recipe-values", make_values, run_values, share=10, in_ci=60),
    Target("plans", make_plan, run_plan, share=2, in_ci=4),
)
