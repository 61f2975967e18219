"""Recipe section of preference training. Light: no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationInfo, model_validator

from ...errors import WhetError
from ...recipe_rules import is_new
from ..section import RowMethod

if TYPE_CHECKING:
    from ..stored_rows import StoredRows

Loss = Literal[
    "dpo", "ipo", "hinge", "robust", "apo_zero", "apo_down", "sppo_hard", "nca_pair", "simpo", "cpo", "orpo",
    "kto",
]  # fmt: skip
REFERENCE_FREE = ("simpo", "cpo", "orpo")
"""Losses that compare the model with nothing but itself."""
RATED = ("kto",)
"""Losses that learn from verdicts on single answers."""
SMOOTHED = ("robust", "simpo", "cpo")
"""Losses that know that a label may be wrong."""
BETA = {"simpo": 2.0}
"""Where the usual strength is not 0.1: SimPO's margins are of mean log-probabilities."""


class PreferenceSection(RowMethod):
    """Of two answers the better one becomes likelier, or answers called good do and those called bad do not.

    The reference that some losses measure from is the model with its adapter off: there is no second copy.
    """

    kind: Literal["preference"] = "preference"
    loss: Loss | Literal["auto"] = Field(
        "auto", description="auto: dpo for chosen and rejected answers, kto for answers with a label."
    )
    beta: float | None = Field(
        None,
        gt=0,
        description="How strongly the model is held to its reference, or weight of the odds in orpo. By "
        "default 0.1, and 2.0 for simpo.",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Share of pairs taken to be labelled the wrong way: robust, cpo, simpo.",
    )
    gamma: float = Field(0.5, ge=0, description="simpo: the margin that the chosen answer shall win by.")
    sft_weight: float | None = Field(
        None, ge=0, description="cpo, simpo: weight of the chosen answer's own loss; by default 1, simpo 0."
    )
    good_weight: float = Field(1.0, gt=0, description="kto: weight of answers called good.")
    bad_weight: float = Field(1.0, gt=0, description="kto: weight of answers called bad.")

    @model_validator(mode="after")
    def _known_to_the_loss(self, info: ValidationInfo) -> PreferenceSection:
        """Refuse settings that the loss would ignore."""
        if not is_new(info):
            return self
        users = {
            "label_smoothing": SMOOTHED,
            "gamma": ("simpo",),
            "sft_weight": ("cpo", "simpo"),
            "good_weight": RATED,
            "bad_weight": RATED,
        }
        for name, losses in users.items():
            # By its value: a recipe that was stored whole names every setting.
            default = type(self).model_fields[name].default
            rated = self.loss == "auto" and losses == RATED
            if getattr(self, name) != default and self.loss not in losses and not rated:
                raise ValueError(
                    f"method.{name} belongs to method.loss={' or '.join(losses)}, not {self.loss}."
                )
        if self.loss == "robust" and self.label_smoothing == 0:
            raise ValueError("method.loss=robust is dpo unless method.label_smoothing is above 0.")
        return self

    def loss_of(self, layout: str) -> str:
        """The loss for rows of this layout."""
        if self.loss != "auto":
            return self.loss
        return "kto" if layout == "ratings" else "dpo"

    def layout_of_loss(self) -> str | None:
        """The layout that the loss needs; None where it follows from the rows."""
        if self.loss == "auto":
            return None
        return "ratings" if self.loss in RATED else "preference"

    def measured(self, layout: str) -> bool:
        """Whether the loss for such rows measures from a reference."""
        return self.loss_of(layout) not in REFERENCE_FREE

    def passes(self, layout: str) -> int:
        """Passes without a gradient beside the one that trains: the reference's, and kto's over each prompt
        with another row's answer, by the model and by its reference."""
        if layout == "ratings":
            return 3
        return int(self.measured(layout))

    def refuse_rows(self, rows: StoredRows) -> None:
        """Raises WhetError ``preference.batch``: kto needs a neighbour."""
        if self.loss_of(rows.layout) == "kto" and rows.batch_size < 2:
            raise WhetError(
                "preference.batch",
                "method.loss=kto measures how far the model has moved by the other answers of a micro-batch, "
                "and training.batch_size is 1.",
                "Set training.batch_size to 2 or more, better 4.",
            )
