"""A model of one class of transformers, whole: every weight of it lies in the folder. For models that hear or
speak."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ..errors import WhetError
from ..models.adapters import add_adapter
from ..models.own_files import LOCAL
from ..plan import Plan
from ..recipe import AdapterSection
from .classification.loading import load_options


def load_complete(kind: Any, plan: Plan, path: Path, called: str, unrounded: Sequence[str]) -> Any:
    """The model as the plan holds it, for training.

    Args:
        kind: transformers' class.
        plan: says precision and device.
        path: the folder.
        called: the model, in messages.
        unrounded: modules that a quantised base leaves in 16 bits.

    Raises:
        WhetError: ``model.load``.
    """
    try:
        config = AutoConfig.from_pretrained(path, **LOCAL)
        options = load_options(plan, config, False)
        if "quantization_config" in options:
            options["quantization_config"].llm_int8_skip_modules = list(unrounded)
        model, seen = kind.from_pretrained(path, config=config, **options)
    except (OSError, ValueError, KeyError) as error:
        raise not_loaded(path, called, error) from error
    broken = sorted([*seen["missing_keys"], *(one[0] for one in seen["mismatched_keys"])])
    if broken:
        raise WhetError(
            "model.load",
            f"{path} lacks {len(broken)} weights of {called}, or holds them in another shape: {broken[0]}.",
            "Download the model again, whole.",
        )
    model.config.use_cache = False
    return model


def not_loaded(path: Path, called: str, error: Exception) -> WhetError:
    """The error of a folder that is no such model."""
    return WhetError(
        "model.load",
        f"{path} could not be loaded as {called}: {str(error).strip().splitlines()[0]}",
        "Check that the folder holds all files of the model, its safetensors weights complete.",
    )


def adapted(model: Any, plan: Plan, path: Path, section: AdapterSection) -> Any:
    """The model frozen, under an adapter that names its base. Raises WhetError ``adapter.*``."""
    model.requires_grad_(False)
    recipe = plan.recipe
    name = recipe.model.name
    return add_adapter(
        model,
        section,
        recipe.training.seed,
        name=str(path) if Path(name).exists() else name,
        revision=recipe.model.revision,
        task=None,  # PEFT's wrappers of tasks pass token ids, and these inputs are sound or its codes
    )
