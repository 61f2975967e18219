"""TRL's DPO, KTO, ORPO, CPO and reward trainers, taking every generation's spellings, without telemetry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import trl
from peft import PeftModel
from trl.experimental.cpo import CPOConfig as _CPOConfig
from trl.experimental.cpo import CPOTrainer as _CPOTrainer
from trl.experimental.orpo import ORPOConfig as _ORPOConfig
from trl.experimental.orpo import ORPOTrainer as _ORPOTrainer

from ..errors import WhetError
from ..methods.fast_head import COPY
from ..methods.fast_reference import PairReference, RatedReference
from ..methods.preference.without_logits import ContrastWithoutLogits, OddsWithoutLogits
from .notes import say
from .older_trainers import OlderTrainer
from .precision import resolve_mixed_precision, resolve_optimizer
from .preference_steps import FastAnswers
from .spellings import refuse_unknown, translate_config
from .state import base_model, state_of

MOVED = ("beta", "max_length", "max_prompt_length", "max_completion_length", "label_smoothing", "loss_type")
"""Arguments of older trainers that are the configuration's today."""
UNCUT = ("max_prompt_length", "max_target_length", "max_completion_length")
"""Lengths that TRL has no more."""


def PatchDPOTrainer() -> None:
    """Nothing: there is nothing to patch. Accepted so that scripts run as they are."""


def preference_arguments(owner: type[Any], given: dict[str, Any]) -> dict[str, Any]:
    """Today's arguments of a configuration class from any generation's, with the hardware's choices made.

    Args:
        owner: the class of TRL.
        given: keyword arguments as the script wrote them.

    Raises:
        WhetError: ``python_api.removed`` for what TRL can do no more; as :func:`.spellings.translate_config`.
    """
    known = [field.name for field in fields(owner) if field.init]
    arguments = dict(given)
    for name in UNCUT:
        if name not in known and arguments.pop(name, None) is not None:
            say(f"{name}= has no effect: max_length= cuts prompt and answer together, at the end.")
    _removed(arguments, known)
    arguments = translate_config(arguments, known, owner=owner.__name__)
    bf16, fp16 = resolve_mixed_precision(arguments.get("bf16"), arguments.get("fp16"))
    arguments |= {"bf16": bf16, "fp16": fp16}
    if "optim" in arguments:
        arguments["optim"] = resolve_optimizer(str(getattr(arguments["optim"], "value", arguments["optim"])))
    # A NaN that is logged as 0.0 looks like perfect learning.
    arguments.setdefault("logging_nan_inf_filter", False)
    return arguments


def _removed(arguments: dict[str, Any], known: Sequence[str]) -> None:
    """Take out, in place, what DPO's configuration had once."""
    if "padding_value" not in known and arguments.pop("padding_value", None) is not None:
        say("padding_value= has no effect: padding is attended by nothing.")
    if "reference_free" not in known and arguments.pop("reference_free", False):
        raise WhetError(
            "python_api.removed",
            "reference_free=True: TRL's DPO always measures from a reference.",
            'Use CPOTrainer, with CPOConfig(loss_type="simpo") for SimPO.',
        )
    if "generate_during_eval" not in known and arguments.pop("generate_during_eval", False):
        raise WhetError(
            "python_api.removed",
            "generate_during_eval=True: TRL's trainer shows no answers any more.",
            "Generate in a callback, or train by a recipe with sampling.prompts.",
        )
    if "rpo_alpha" not in known and (alpha := arguments.pop("rpo_alpha", None)) is not None:
        given = arguments.get("loss_type", "sigmoid")
        losses = [given] if isinstance(given, str) else given
        weights = arguments.get("loss_weights") or [1.0] * len(losses)
        arguments |= {"loss_type": [*losses, "sft"], "loss_weights": [*weights, float(alpha)]}


@dataclass(init=False)
class DPOConfig(trl.DPOConfig):
    """TRL's, with older spellings; see :func:`preference_arguments`."""

    def __init__(self, output_dir: str | None = None, **given: Any) -> None:
        self.explicit = dict(given)
        super().__init__(output_dir=output_dir, **preference_arguments(trl.DPOConfig, given))


@dataclass(init=False)
class KTOConfig(trl.KTOConfig):
    """TRL's, with older spellings; see :func:`preference_arguments`."""

    def __init__(self, output_dir: str | None = None, **given: Any) -> None:
        self.explicit = dict(given)
        super().__init__(output_dir=output_dir, **preference_arguments(trl.KTOConfig, given))


@dataclass(init=False)
class RewardConfig(trl.RewardConfig):
    """TRL's, with older spellings; see :func:`preference_arguments`."""

    def __init__(self, output_dir: str | None = None, **given: Any) -> None:
        self.explicit = dict(given)
        super().__init__(output_dir=output_dir, **preference_arguments(trl.RewardConfig, given))


@dataclass(init=False)
class ORPOConfig(_ORPOConfig):
    """TRL's, with older spellings; see :func:`preference_arguments`."""

    def __init__(self, output_dir: str | None = None, **given: Any) -> None:
        self.explicit = dict(given)
        super().__init__(output_dir=output_dir, **preference_arguments(_ORPOConfig, given))


@dataclass(init=False)
class CPOConfig(_CPOConfig):
    """TRL's, with older spellings; SimPO is ``loss_type="simpo"``. See :func:`preference_arguments`."""

    def __init__(self, output_dir: str | None = None, **given: Any) -> None:
        self.explicit = dict(given)
        super().__init__(output_dir=output_dir, **preference_arguments(_CPOConfig, given))


class _Spelt(OlderTrainer):
    """Goes before one of TRL's preference trainers among a class's bases."""

    moved = MOVED
    output_dir = "preference"

    def __init__(self, model: Any = None, *positional: Any, **given: Any) -> None:
        super().__init__(model, *positional, **given)
        own: Any = self
        drop_copy(own.model)

    def _configure(self, config: Any, model: Any, moved: dict[str, Any]) -> None:
        known = [field.name for field in fields(self.config_class) if field.init]
        for name, value in moved.items():
            if name == "loss_type" and isinstance(value, str) and self.config_class is DPOConfig:
                value = [value]  # as TRL's configuration has it once it is made
            if name in known:
                setattr(config, name, value)
            elif name not in UNCUT:
                refuse_unknown(f"{type(self).__name__}", [name], known)
            else:
                say(f"{name}= has no effect: max_length= cuts prompt and answer together, at the end.")
        state = None if model is None or isinstance(model, str) else state_of(model)
        explicit = {*getattr(config, "explicit", {"max_length": None}), *moved}
        if state is not None and "max_length" not in explicit:
            config.max_length = state.max_seq_length


def drop_copy(model: Any) -> None:
    """TRL's frozen copy of an adapter that changes nothing yet: with the adapter off it is the same."""
    if not isinstance(model, PeftModel) or COPY not in model.peft_config:
        return
    second = [param for name, param in model.named_parameters() if ".lora_B.default." in name]
    if second and not any(bool(param.any()) for param in second):
        model.delete_adapter(COPY)


class DPOTrainer(_Spelt, PairReference, FastAnswers, trl.DPOTrainer):
    """TRL's `DPOTrainer`; with an adapter and ``ref_model=None`` the reference is the adapter as it began."""

    config_class = DPOConfig
    forwards = 1


class KTOTrainer(_Spelt, RatedReference, FastAnswers, trl.KTOTrainer):
    """TRL's `KTOTrainer`."""

    config_class = KTOConfig
    forwards = 3


class RewardTrainer(_Spelt, trl.RewardTrainer):
    """TRL's `RewardTrainer`; the model is a name, or was loaded with one output.

    Raises:
        WhetError: ``python_api.no_score`` for a model with another head.
    """

    config_class = RewardConfig

    def __init__(self, model: Any = None, *positional: Any, **given: Any) -> None:
        labels = 1 if model is None or isinstance(model, str) else _outputs_of(model)
        if labels != 1:
            raise WhetError(
                "python_api.no_score",
                f"RewardTrainer trains a model with one output, the score, and "
                f"{type(base_model(model)).__name__} has {labels or 'none'}.",
                "Pass the model's name, or load it with "
                "AutoModelForSequenceClassification.from_pretrained(name, num_labels=1).",
            )
        super().__init__(model, *positional, **given)


def _outputs_of(model: Any) -> int:
    """Classes that a model tells apart; 0 for one that is no classifier."""
    base = base_model(model)
    classifies = "SequenceClassification" in type(base).__name__
    return int(base.config.num_labels) if classifies else 0


class ORPOTrainer(_Spelt, OddsWithoutLogits, FastAnswers, _ORPOTrainer):
    """TRL's `ORPOTrainer`."""

    config_class = ORPOConfig


class CPOTrainer(_Spelt, ContrastWithoutLogits, FastAnswers, _CPOTrainer):
    """TRL's `CPOTrainer`, of CPO and SimPO."""

    config_class = CPOConfig
