"""DeepSpeed by its own configuration file: the file says how weights and states are held, the recipe what is
trained.

Both can name the same things, such as the rows of a step. A file may leave those to the recipe (``"auto"``,
or not at all); where it names another value than the recipe, nobody could know which was meant. Light: no
torch.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WhetError

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..resolve import Resolved

AUTO = "auto"
STAGES = (1, 2)
"""Of ZeRO: states, or states and gradients, lie in shares; each GPU holds all weights."""


def deepspeed_config(recipe: Recipe, resolved: Resolved) -> dict[str, Any]:
    """The file of ``hardware.deepspeed``, with what it leaves open filled in from the plan.

    Raises:
        WhetError: ``deepspeed.missing`` without the package, ``deepspeed.file`` for a file that is no JSON
            object, ``deepspeed.stage`` for ZeRO-0 and -3, ``deepspeed.contradiction`` where file and recipe
            name different values.
    """
    path = recipe.hardware.deepspeed
    assert path is not None
    require_package(path)
    config = read_config(Path(path).expanduser())
    _refuse_stage(path, config)
    _refuse_contradictions(path, contradictions(config, recipe, resolved))
    return filled(config, recipe, resolved)


def require_package(path: str) -> None:
    """Raises WhetError ``deepspeed.missing`` where the package is not installed."""
    if find_spec("deepspeed") is None:
        raise WhetError(
            "deepspeed.missing",
            f"hardware.deepspeed={path} needs the package deepspeed, which is not installed.",
            "Install it with `pip install deepspeed`, or leave the file out: FSDP needs no package.",
        )


def read_config(path: Path) -> dict[str, Any]:
    """Raises WhetError ``deepspeed.file`` for what is no JSON object."""
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise _no_config(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise _no_config(path, f"no JSON: {error}") from error
    if not isinstance(config, dict):
        raise _no_config(path, f"a {type(config).__name__}, not an object")
    return config


def _no_config(path: Path, why: str) -> WhetError:
    return WhetError(
        "deepspeed.file",
        f"{path} is no configuration of DeepSpeed: {why}.",
        "Name a file such as https://www.deepspeed.ai/docs/config-json describes.",
    )


def wanted(recipe: Recipe, resolved: Resolved) -> dict[str, tuple[Any, str]]:
    """What the recipe says of the things that both name: dotted key of the file -> value, recipe's key."""
    training = recipe.training
    return {
        "train_micro_batch_size_per_gpu": (resolved.batch_size, "training.batch_size, of one GPU"),
        "gradient_accumulation_steps": (
            resolved.gradient_accumulation,
            "training.gradient_accumulation, of one GPU",
        ),
        "train_batch_size": (resolved.rows_per_step, "rows of a step"),
        "gradient_clipping": (training.max_grad_norm or 0.0, "training.max_grad_norm"),
        "bf16.enabled": (resolved.compute_dtype == "bf16", "training.precision=bf16"),
        "fp16.enabled": (resolved.compute_dtype == "fp16", "training.precision=fp16"),
        "optimizer.params.lr": (training.learning_rate, "training.learning_rate"),
        "optimizer.params.betas": ([training.beta1, training.beta2], "training.beta1 and beta2"),
        "optimizer.params.eps": (training.epsilon, "training.epsilon"),
        "optimizer.params.weight_decay": (training.weight_decay, "training.weight_decay"),
        "scheduler.type": (None, "training.scheduler, which whet steps itself"),
    }


ALWAYS = (
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "train_batch_size",
    "gradient_clipping",
    "bf16.enabled",
    "fp16.enabled",
)
"""Filled in where the file does not name them."""


def contradictions(
    config: dict[str, Any], recipe: Recipe, resolved: Resolved
) -> Iterator[tuple[str, Any, Any, str]]:
    """(key, the file's value, the recipe's, what that is called there) of all that differ."""
    for key, (value, name) in wanted(recipe, resolved).items():
        said = _get(config, key)
        if said not in (None, AUTO) and said != value:
            yield key, said, value, name


def filled(config: dict[str, Any], recipe: Recipe, resolved: Resolved) -> dict[str, Any]:
    """A copy with the recipe's values where the file says ``auto``, or nothing."""
    whole = copy.deepcopy(config)
    for key, (value, _) in wanted(recipe, resolved).items():
        said = _get(config, key)
        if value is not None and (said == AUTO or (said is None and key in ALWAYS)):
            _set(whole, key, value)
    return whole


def _refuse_stage(path: str, config: dict[str, Any]) -> None:
    stage = _get(config, "zero_optimization.stage") or 0
    if stage not in STAGES:
        raise WhetError(
            "deepspeed.stage",
            f"{path} asks for ZeRO stage {stage}. Stage 0 shares nothing out, as whet does without it; "
            "stage 3 shares weights out while they are loaded, before whet quantises and adds adapters.",
            "Set zero_optimization.stage to 1 or 2; or leave the file out, and FSDP shares out all weights.",
        )


def _refuse_contradictions(path: str, found: Iterator[tuple[str, Any, Any, str]]) -> None:
    differing = [f"{key} is {said} there, and {value} here ({name})" for key, said, value, name in found]
    if differing:
        raise WhetError(
            "deepspeed.contradiction",
            f"{path} and the recipe differ: {'; '.join(differing)}.",
            'Write "auto" into the file, or take the key out, and the recipe decides; or change the recipe.',
        )


def _get(config: dict[str, Any], key: str) -> Any:
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        config = config.setdefault(part, {})
    config[last] = value
