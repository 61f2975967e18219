"""Recipes, plans, goals, models."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WhetError
from ..settings import settings

if TYPE_CHECKING:
    from ..goals import Goal, Proposal
    from ..models.hub_search import HubModel
    from ..models.listing import ModelEntry
    from ..models.report import ModelReport
    from ..plan import Plan
    from ..recipe import Recipe


def recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe file or a shipped recipe's name, with ``key=value`` overrides."""
    from ..recipe_files import load_recipe

    return load_recipe(source, overrides)


def copy_recipe(name: str, to: Path) -> Path:
    """Copy a shipped recipe to start from. Refuses to overwrite."""
    from ..recipe_files import find_recipe

    source = find_recipe(name)
    target = to / f"{Path(name).stem}.yaml" if to.is_dir() else to
    if target.exists():
        raise WhetError("recipe.exists", f"{target} exists.", "Name another file: --copy NAME --to FILE")
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise WhetError(
            "recipe.not_writable",
            f"Cannot write {target}: {error.strerror}.",
            "Name another place with --to.",
        ) from error
    return target


def about_recipe(name: str) -> str:
    """The first line of a shipped recipe's comment."""
    from ..recipe_files import find_recipe

    return find_recipe(name).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def schema() -> dict[str, Any]:
    """JSON Schema of the recipe."""
    from ..recipe import Recipe

    return Recipe.model_json_schema()


def plan(
    wanted: Recipe, overrides: Sequence[str] = (), progress: Callable[[int], None] | None = None
) -> Plan:
    """What would happen: every value with its origin, memory, time, findings. ``progress`` counts rows read.

    ``overrides`` are the ``key=value`` words already applied to ``wanted``: they mark the values' origins.
    """
    from ..plan import make_plan

    return make_plan(wanted, overrides=overrides, progress=progress)


def keep_plan(agreed: Plan) -> str:
    """Keep a plan so that it can be started by its id later; returns the id. The newest 200 are kept."""
    from ..plan_store import keep_plan as keep

    return keep(agreed)


def kept_plan(plan_id: str) -> Plan:
    """A kept plan by its id, or a beginning that only it has. Raises WhetError ``plan.unknown``."""
    from ..plan_store import kept_plan as kept

    return kept(plan_id)


def propose(goal: Goal, progress: Callable[[int], None] | None = None) -> Proposal:
    """A whole recipe for a goal, planned here, with the reason of each value; starts nothing."""
    from ..goals import propose

    return propose(goal, progress)


def models(
    query: str | None = None, fits_gib: float | None = None, folders: Sequence[Path] = ()
) -> list[ModelEntry]:
    """Models on this machine, then those people commonly tune.

    ``query`` is part of a name, family or licence; ``fits_gib`` keeps what trains in that much memory;
    ``folders`` are looked through for model directories.
    """
    from ..models.listing import list_models

    return list_models(query, fits_gib, folders)


def method_models(method: str, folders: Sequence[Path] = ()) -> list[str]:
    """Names of models for a method whose models are no chat models: encoders on this machine, then usual ones
    of the hub; none for a method that begins with a chat model."""
    from ..goals.methods import USUAL_MODELS
    from ..models.listing import encoders

    if method not in USUAL_MODELS:
        return []
    return list(dict.fromkeys([*encoders(folders), *USUAL_MODELS[method]]))


def hub_login() -> str:
    """Of the hub: ``offline``, ``logged in`` or ``not logged in``; asks the machine, not the network."""
    from huggingface_hub import get_token

    if settings().offline:
        return "offline"
    return "logged in" if get_token() is not None else "not logged in"


def search_models(query: str, limit: int = 20) -> list[HubModel]:
    """Models on the hub by words, the most downloaded first. Raises WhetError ``hub.offline``,
    ``hub.unreachable``."""
    from ..models.hub_search import search_hub

    return search_hub(query, limit)


def inspect_model(name: str, revision: str | None = None) -> ModelReport:
    """Facts, capabilities, template and memory of one model; no weights are read."""
    from ..models.report import inspect_model

    return inspect_model(name, revision)
