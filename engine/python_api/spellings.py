"""Older spellings of trainer and configuration arguments: what each becomes, or why it has no effect. Light.

Scripts in the wild were written against several generations of TRL and transformers. A spelling is renamed,
set aside with a note, or refused by name; nothing is dropped silently.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from ..errors import WhetError
from .notes import say

CONFIG_RENAMED = {
    "max_seq_length": "max_length",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_model_id": "hub_model_id",
}

CHECKPOINTING_FIELDS = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Renamed within the supported range of transformers."""

CONFIG_WITHOUT_EFFECT = {
    "logging_dir": "TensorBoard's folder is the environment variable TENSORBOARD_LOGGING_DIR",
    "overwrite_output_dir": "checkpoints are written beside older ones, and nothing is overwritten",
    "use_mps_device": "the device is found without it",
    "half_precision_backend": "there is one backend",
    "fp16_backend": "there is one backend",
    "fp16_opt_level": "it belonged to apex",
    "use_ipex": "it belonged to a discontinued extension",
    "jit_mode_eval": "torch has dropped it",
    "past_index": "no supported model reads it",
    "dataset_batch_size": "rows are tokenised in batches of a fixed size",
    "num_of_sequences": "packing fills rows up to max_length",
    "chars_per_token": "packing counts tokens, not characters",
    "infinite": "use max_steps",
    "use_liger": "use_liger_kernel=True is its present name",
}

TRAINER_TO_CONFIG = {
    "dataset_text_field": "dataset_text_field",
    "max_seq_length": "max_length",
    "max_length": "max_length",
    "packing": "packing",
    "eval_packing": "eval_packing",
    "dataset_num_proc": "dataset_num_proc",
    "neftune_noise_alpha": "neftune_noise_alpha",
    "dataset_kwargs": "dataset_kwargs",
    "model_init_kwargs": "model_init_kwargs",
    "embedding_learning_rate": "embedding_learning_rate",
}

TRAINER_WITHOUT_EFFECT = ("dataset_batch_size", "num_of_sequences", "chars_per_token", "infinite")

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def refuse_token(name: str, value: Any) -> None:
    """Tokens come from the environment or the hub's own login, never from an argument that ends in a script.

    `None`, `True`, `False` and the environment's own token pass: they say nothing new.

    Raises:
        WhetError: `python_api.token`.
    """
    if value is None or isinstance(value, bool) or value in [os.environ.get(key) for key in TOKEN_VARIABLES]:
        return
    raise WhetError(
        "python_api.token",
        f"{name}= carries an access token in code.",
        f"Remove {name}= and set HF_TOKEN in the environment, or log in once with `hf auth login`.",
    )


def translate_config(given: dict[str, Any], known: Iterable[str], owner: str = "SFTConfig") -> dict[str, Any]:
    """Today's arguments for a configuration class from any generation's.

    Args:
        given: keyword arguments as the script wrote them.
        known: field names of the configuration class.
        owner: its name.

    Raises:
        WhetError: `python_api.token` for an access token, `python_api.conflict` when two spellings of one
            setting differ, `python_api.unknown_argument` for a name no generation had.
    """
    arguments = dict(given)
    for name in ("push_to_hub_token", "hub_token"):
        refuse_token(name, arguments.pop(name, None))
    for old, new in CONFIG_RENAMED.items():
        if old in arguments:
            _rename(arguments, old, new, arguments.pop(old))
    for old, reason in CONFIG_WITHOUT_EFFECT.items():
        if arguments.pop(old, None) not in (None, False):
            say(f"{old}= has no effect: {reason}.")
    for old, new in CHECKPOINTING_FIELDS.items():
        if old in arguments and new in known:
            _rename(arguments, old, new, arguments.pop(old))
    if arguments.pop("save_safetensors", True) is False:
        say("save_safetensors=False has no effect: weights are always written as safetensors.")
    if arguments.pop("group_by_length", False):
        _rename(arguments, "group_by_length", "train_sampling_strategy", "group_by_length")
    if arguments.pop("include_inputs_for_metrics", False):
        _rename(arguments, "include_inputs_for_metrics", "include_for_metrics", ["inputs"])
    if (share := arguments.pop("warmup_ratio", None)) is not None:
        _warmup(arguments, share)
    refuse_unknown(owner, arguments, known)
    return arguments


def config_from_trainer(given: dict[str, Any], set_in_config: dict[str, Any]) -> dict[str, Any]:
    """Take from `given`, in place, the trainer arguments that belong to the configuration; return them
    renamed.

    Args:
        given: the trainer's keyword arguments; those that belong elsewhere are removed.
        set_in_config: what the script itself set on the configuration.

    Raises:
        WhetError: `python_api.conflict` when trainer and configuration disagree.
    """
    for name in TRAINER_WITHOUT_EFFECT:
        if name in given:
            given.pop(name)
            say(f"{name}= has no effect: {CONFIG_WITHOUT_EFFECT[name]}.")
    merged = dict(set_in_config)
    moved = {}
    for name, field in TRAINER_TO_CONFIG.items():
        if name in given and (value := given.pop(name)) is not None:
            _rename(merged, name, field, value)
            moved[field] = value
    return moved


def refuse_unknown(
    owner: str, arguments: Iterable[str], known: Iterable[str], also: Iterable[str] = ()
) -> None:
    """Raise WhetError `python_api.unknown_argument` for the first unknown name, with the nearest ones.

    Args:
        owner: what was called.
        arguments: names as given.
        known: names that pass.
        also: further names worth suggesting.
    """
    names = {*known}
    for name in arguments:
        if name not in names:
            near = get_close_matches(name, [*names, *also], n=3)
            raise WhetError(
                "python_api.unknown_argument",
                f"{owner} has no argument {name!r}.",
                f"Nearest: {', '.join(near)}." if near else "",
            )


def _rename(arguments: dict[str, Any], old: str, new: str, value: Any) -> None:
    if new in arguments and old != new and arguments[new] != value:
        raise WhetError(
            "python_api.conflict",
            f"{old}={value!r} and {new}={arguments[new]!r} set the same thing to different values.",
            f"Keep {new}=.",
        )
    if old == new and new in arguments and arguments[new] != value:
        raise WhetError(
            "python_api.conflict",
            f"{new}={value!r} on the trainer and {new}={arguments[new]!r} on the configuration differ.",
            "Keep the one on the configuration.",
        )
    arguments[new] = value


def _warmup(arguments: dict[str, Any], share: float) -> None:
    """`warmup_ratio` is a `warmup_steps` below 1 today; explicit steps always won over a ratio."""
    if not 0 <= share < 1:
        raise WhetError(
            "python_api.warmup", f"warmup_ratio={share!r} is not a share of all steps.", "Use 0 to 1."
        )
    if steps := arguments.get("warmup_steps"):
        say(f"warmup_ratio={share} has no effect beside warmup_steps={steps}, as it always was.")
        return
    arguments["warmup_steps"] = float(share)
