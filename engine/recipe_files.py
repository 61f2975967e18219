"""Recipes as files: YAML, ``key=value`` overrides, the shipped examples, and errors a person can act on."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .errors import WhetError
from .recipe import METHODS, Recipe

SHIPPED = Path(__file__).parent / "recipes"

UNREADABLE = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)
"""What PyYAML raises: its own; what `!!int abc`, a day that is none, and deep nesting make of it."""

# Names people know from TRL, PEFT and other tools, and ours for the same thing.
OTHER_NAMES = {
    "model_name": "model.name",
    "model_name_or_path": "model.name",
    "base_model": "model.name",
    "max_seq_length": "model.max_length",
    "sequence_len": "model.max_length",
    "load_in_4bit": "model.precision",
    "load_in_8bit": "model.precision",
    "dtype": "model.precision",
    "dataset": "data.train",
    "datasets": "data.train",
    "chat_template": "data.template",
    "val_set_size": "data.eval_fraction",
    "lora_r": "adapter.rank",
    "r": "adapter.rank",
    "lora_rank": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "use_rslora": "adapter.kind",
    "use_dora": "adapter.kind",
    "full_finetuning": "adapter.kind",
    "num_train_epochs": "training.epochs",
    "num_epochs": "training.epochs",
    "per_device_train_batch_size": "training.batch_size",
    "micro_batch_size": "training.batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation",
    "lr": "training.learning_rate",
    "lr_scheduler_type": "training.scheduler",
    "lr_scheduler": "training.scheduler",
    "warmup_steps": "training.warmup",
    "warmup_ratio": "training.warmup",
    "optim": "training.optimizer",
    "random_state": "training.seed",
    "save_steps": "training.save_every",
    "save_total_limit": "training.keep_checkpoints",
    "eval_steps": "eval.every",
    "per_device_eval_batch_size": "eval.batch_size",
    "neftune_noise_alpha": "method.neftune_alpha",
    "sample_packing": "method.packing",
    "quantization_method": "export.gguf",
    "num_gpus": "hardware.gpus",
    "nproc_per_node": "hardware.gpus",
    "deepspeed": "hardware.deepspeed",
}


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file or a shipped recipe's name, apply ``key=value`` overrides and validate.

    Raises:
        WhetError: ``recipe.not_found``, ``recipe.yaml``, ``recipe.unknown_key``, ``recipe.invalid``,
            ``recipe.override``; each names the place, the value and what would be right.
    """
    path = find_recipe(source)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _not_yaml(str(path), error) from error
    return recipe_from_text(text, str(path), overrides)


def recipe_from_text(text: str, where: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a YAML text is; raises what :func:`load_recipe` does, naming ``where`` as the place."""
    try:
        values = yaml.safe_load(text) or {}
    except UNREADABLE as error:
        raise _not_yaml(where, error) from error
    if not isinstance(values, dict):
        raise WhetError(
            "recipe.yaml",
            f"{where} holds a {type(values).__name__}, not settings.",
            f"Start from a shipped recipe: {', '.join(shipped())}.",
        )
    for override in overrides:
        values = apply(values, *parse_override(override))
    return build(values, where=where, lines=_lines(text))


def _not_yaml(where: str, error: Exception) -> WhetError:
    return WhetError("recipe.yaml", f"{where} is not YAML: {error}", "Mind the indentation.")


def build(values: dict[str, Any], where: str = "recipe", lines: dict[str, int] | None = None) -> Recipe:
    """Validate plain values into a Recipe; the first mistake becomes one WhetError naming ``where``."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise _readable(error.errors()[0], where, lines or {}) from error


def patched(recipe: Recipe, patch: dict[str, Any]) -> Recipe:
    """A copy of ``recipe`` with a finding's patch (dotted key to value) applied."""
    values = recipe.model_dump(exclude_unset=True)
    for key, value in patch.items():
        values = apply(values, key, value)
    return build(values, where="patch")


def to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML: only what was set, in the schema's order."""
    values = recipe.model_dump(mode="json", exclude_unset=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)


def shipped() -> list[str]:
    """Names of the example recipes in the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def find_recipe(source: str | Path) -> Path:
    """The file meant by a path or a shipped recipe's name."""
    path = Path(source)
    if os.path.isfile(path):  # pathlib raises for names that are too long
        return path
    by_name = SHIPPED / f"{path.stem}.yaml"
    if str(source) in (by_name.stem, by_name.name) and os.path.isfile(by_name):
        return by_name
    near = _nearest(path.stem, shipped())
    raise WhetError(
        "recipe.not_found",
        f"No recipe at {source}.",
        f"Did you mean the shipped recipe {near!r}?" if near else "`whet recipes` lists the shipped ones.",
    )


def parse_override(text: str) -> tuple[str, Any]:
    """``training.max_steps=30`` -> its dotted key and its value, read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise WhetError("recipe.override", f"{text!r} is not key=value.", "Example: training.max_steps=30")
    try:
        return key.strip(), _number(yaml.safe_load(value))
    except UNREADABLE as error:
        raise WhetError("recipe.override", f"The value of {text!r} is not YAML.", "Quote it.") from error


def apply(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of nested ``values`` with dotted ``key`` set."""
    head, _, rest = key.partition(".")
    if not rest:
        return {**values, head: value}
    inner = values.get(head) or {}
    if not isinstance(inner, dict):
        raise WhetError("recipe.override", f"{head} is {inner!r}, so {key} cannot be set.", "Check the key.")
    return {**values, head: apply(inner, rest, value)}


def settings_paths(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        inner = (path for section in sections_of(field.annotation) for path in settings_paths(section))
        yield from (f"{prefix}{name}.{path}" for path in dict.fromkeys(inner))


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a setting's value may be: none for plain values, several for methods."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [section for part in get_args(annotation) for section in sections_of(part)]


def _number(value: Any) -> Any:
    """YAML 1.1 reads 2e-4 as text; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() else value
        except ValueError:
            return value
    return value


def _readable(error: ErrorDetails, where: str, lines: dict[str, int]) -> WhetError:
    place_of = list(error["loc"])
    if place_of[:1] == ["method"] and place_of[1:2] and place_of[1] in METHODS:
        del place_of[1]  # which of the methods it is, which no recipe says in a key
    key = ".".join(map(str, place_of))
    line = lines.get(key)
    place = f"{where}:{line}" if line else where
    value = _beginning(error["input"])
    kind = error["type"]
    if kind == "extra_forbidden":
        method = METHODS.get(str(error["loc"][1])) if error["loc"][0] == "method" else None
        known = [f"method.{path}" for path in settings_paths(method)] if method else list(settings_paths())
        near = OTHER_NAMES.get(key.rsplit(".", 1)[-1]) or _nearest(key, known)
        hint = f"Did you mean {near}?" if near else "`whet schema` prints every setting."
        return WhetError("recipe.unknown_key", f"{place}: {key} is not a setting (value {value}).", hint)
    if kind == "missing":
        return WhetError("recipe.missing_key", f"{place}: {key} is missing.", _help(key))
    reason = error["msg"].removeprefix("Value error, ")
    subject = f"{key} = {value}: " if key else ""
    return WhetError("recipe.invalid", f"{place}: {subject}{reason}", _help(key) if key else "")


def _beginning(value: Any) -> str:
    """Of a value as JSON, no more of which is made than is shown: anchors may repeat it a billion times."""
    text = ""
    for piece in json.JSONEncoder(default=str, skipkeys=True, check_circular=False).iterencode(value):
        text += piece[:80]
        if len(text) >= 80:
            return text[:77] + "..."
    return text


def _help(key: str) -> str:
    """The description of a setting, for the error about it."""
    models: list[type[BaseModel]] = [Recipe]
    description = ""
    for part in key.split("."):
        field = next((model.model_fields[part] for model in models if part in model.model_fields), None)
        if field is None:
            return ""
        description, models = field.description or "", sections_of(field.annotation)
    return f"{key}: {description}" if description else ""


def _nearest(word: str, choices: Sequence[str]) -> str | None:
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if close:
        return close[0]
    last = word.rsplit(".", 1)[-1]
    by_last = {choice.rsplit(".", 1)[-1]: choice for choice in reversed(choices)}
    close = difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.75)
    return by_last[close[0]] if close else None


def _lines(text: str) -> dict[str, int]:
    """Line number of each key of the document, by dotted path."""
    found: dict[str, int] = {}

    def walk(node: yaml.Node | None, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                path = f"{prefix}{key.value}"
                found[path] = key.start_mark.line + 1
                walk(value, path + ".")

    walk(yaml.compose(text, Loader=yaml.SafeLoader), "")
    return found
