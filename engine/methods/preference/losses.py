"""Which of TRL's trainers has a loss, and what it must be told."""

from __future__ import annotations

from typing import Any

from trl import DPOConfig, KTOConfig
from trl.experimental.cpo import CPOConfig
from trl.experimental.orpo import ORPOConfig

from .section import BETA, PreferenceSection
from .trainers import ComparedTrainer, ContrastTrainer, LikelihoodTrainer, OddsTrainer, RatedTrainer

DPO_NAMES = {"dpo": "sigmoid"}
"""What TRL calls losses of its DPO trainer by another name."""


def trainer_of(
    section: PreferenceSection, layout: str, shared: dict[str, Any], max_length: int, dropout: bool
) -> tuple[type[LikelihoodTrainer], Any]:
    """Trainer and configuration of a loss.

    Args:
        section: the recipe's.
        layout: of the rows.
        shared: what transformers' trainer is told.
        max_length: tokens of a prompt with its answer.
        dropout: whether the recipe wants dropout; otherwise the model's own is off, too, since the log-ratios
            that these losses compare are otherwise noise.
    """
    loss = section.loss_of(layout)
    options: dict[str, Any] = {
        **shared,
        "beta": section.beta or BETA.get(loss, 0.1),
        "disable_dropout": not dropout,
        "remove_unused_columns": False,
    }
    if loss == "kto":
        options |= {"desirable_weight": section.good_weight, "undesirable_weight": section.bad_weight}
        return RatedTrainer, KTOConfig(**options, max_length=None)
    if loss == "orpo":
        return OddsTrainer, ORPOConfig(**options, max_length=max_length)
    options["label_smoothing"] = section.label_smoothing
    if loss in ("cpo", "simpo"):
        usual = 0.0 if loss == "simpo" else 1.0
        weight = usual if section.sft_weight is None else section.sft_weight
        kind = "simpo" if loss == "simpo" else "sigmoid"
        options |= {"loss_type": kind, "cpo_alpha": weight, "simpo_gamma": section.gamma}
        return ContrastTrainer, CPOConfig(**options, max_length=max_length)
    return ComparedTrainer, DPOConfig(**options, loss_type=[DPO_NAMES.get(loss, loss)], max_length=None)
