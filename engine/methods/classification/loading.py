"""A model with a task's head ready to train: the head whole, the rest by an adapter or whole too."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, set_seed

from ...errors import WhetError
from ...models.adapters import add_adapter, hold_trained_in_fp32
from ...models.fast_path import FastPathReport
from ...models.fast_path.encoders import apply_fast_encoder
from ...models.loading import DTYPES, load_tokenizer, weight_options
from ...models.own_code import refused_code
from ...plan import Plan
from .suiting import refuse_fp8

POOLER = "pooler"
"""Part of BERT's base class that only some of its tasks train: where it is missing it is the head's."""
UNROUNDED = ["classifier", "score", "head", rf".*\b{POOLER}", "lm_head"]
"""Modules that bitsandbytes leaves alone, since they train: patterns of their paths from the beginning."""


@dataclass(frozen=True)
class Headed:
    """A loaded model and its tokenizer."""

    model: Any
    """transformers' model, or PEFT's wrapper around it."""
    tokenizer: Any
    config: Any
    fused: FastPathReport
    """What of the base runs on whet's kernels."""

    @property
    def device(self) -> torch.device:
        """What it computes on."""
        return torch.device(self.model.device)


def load_headed(
    plan: Plan,
    path: Path,
    auto: Any,
    names: Sequence[str],
    *,
    task: str,
    problem: str | None = None,
    trust_remote_code: bool = False,
) -> Headed:
    """The plan's model from a local folder, with a head of one output a class.

    A head of the folder's own is kept where it has as many outputs; else it starts at random, by the seed.

    Args:
        auto: transformers' Auto class of the task.
        names: of the classes; config.json gets them.
        task: PEFT's name of it.
        problem: transformers' ``problem_type``.

    Raises:
        WhetError: ``model.load``, ``model.remote_code``, ``classification.precision``, ``adapter.*``.
    """
    refuse_fp8(plan.recipe.method.kind, plan.resolved.base_precision)
    set_seed(plan.recipe.training.seed)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
        _configure(config, tokenizer, _kept_order(config, names), problem)
        model, seen = auto.from_pretrained(
            path, config=config, **load_options(plan, config, trust_remote_code)
        )
    except (OSError, ValueError, KeyError) as error:
        raise refused_code(path, error) or WhetError(
            "model.load",
            f"{path} could not be loaded by {auto.__name__}: {str(error).strip().splitlines()[0]}",
            "Choose a model that transformers has this task for, whole, as safetensors.",
        ) from error
    model.config.use_cache = False
    heads = head_modules(path, model, seen["missing_keys"], seen["mismatched_keys"])
    adapted = trainable(plan, path, model, heads, task)
    fused = apply_fast_encoder(adapted, DTYPES[plan.resolved.compute_dtype])
    return Headed(adapted, tokenizer, model.config, fused)


def load_options(plan: Plan, config: Any, trusted: bool) -> dict[str, Any]:
    """What ``from_pretrained`` is told, weights' type and place."""
    return weight_options(
        plan.model.path, config, plan.resolved, unrounded=UNROUNDED, trust_remote_code=trusted
    )


def _kept_order(config: Any, names: Sequence[str]) -> list[str]:
    """The model's own order of the same classes, so that its head goes on meaning what it meant."""
    own = [config.id2label[number] for number in sorted(config.id2label)]
    return own if set(own) == set(names) else list(names)


def _configure(config: Any, tokenizer: Any, names: Sequence[str], problem: str | None) -> None:
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = problem
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Decoders read the class off the last token that is not this one.
    config.pad_token_id = tokenizer.pad_token_id


def head_modules(path: Path, model: Any, missing: Collection[str], mismatched: Collection[Any]) -> list[str]:
    """What stands on the base and trains whole. Raises WhetError ``model.load`` where the base has holes."""
    base = model.base_model_prefix
    inside = [str(name) for name in missing if str(name).startswith(f"{base}.")]
    inside += [str(one[0]) for one in mismatched if str(one[0]).startswith(f"{base}.")]
    broken = [name for name in inside if f".{POOLER}." not in name]
    if broken:
        raise WhetError(
            "model.load",
            f"{path} lacks {len(broken)} weights of {type(model).__name__}, or holds them in another shape: "
            f"{broken[0]}.",
            "Download the model again, whole.",
        )
    heads = [
        name
        for name, part in model.named_children()
        if name != base and next(part.parameters(), None) is not None
    ]
    return [*heads, POOLER] if inside else heads


def trainable(plan: Plan, path: Path, model: Any, heads: list[str], task: str) -> Any:
    """The model with a fresh adapter and its heads beside it, or with all of its weights to train."""
    recipe = plan.recipe
    if recipe.adapter.kind == "none":
        hold_trained_in_fp32(model)
        return model
    model.requires_grad_(False)
    name = recipe.model.name
    saved = list(dict.fromkeys([*recipe.adapter.modules_to_save, *heads]))
    return add_adapter(
        model,
        recipe.adapter.model_copy(update={"modules_to_save": saved}),
        recipe.training.seed,
        name=str(path) if Path(name).exists() or name == "demo" else name,
        revision=recipe.model.revision,
        task=task,
    )
