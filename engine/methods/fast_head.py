"""Log-probabilities as TRL's trainers ask a model for them, answered on the fast path.

TRL gives a model a forward pass that, called with ``labels`` and ``fused_lm_head=True``, returns the
log-probability of every labelled token instead of logits. :func:`put_fast_head` goes before it: rows lie end
to end without padding, documents never see one another, and the head sees the labelled places alone. Losses,
metrics, and the model with its adapter off as reference stay TRL's.

Legend: B rows of T tokens, padding included; S labelled places.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from trl.trainer.utils import FusedCausalLMOutput

from ..data.masking import IGNORE
from ..models.fast_path import DecoderProgram, PackedTokens, causal_model, pack_padded, program_of

METRICS = ("log_probs", "entropy", "mean_logits", "is_top1")
"""TRL's names of what the fast head finds."""
UNDERSTOOD = {"input_ids", "attention_mask"}


def put_fast_head(model: Any, wanted: Collection[str] = ("log_probs",), temperature: float = 1.0) -> None:
    """Let a model on the fast path answer TRL's question there; whatever else it is asked goes the old way.

    Call it after the trainer's constructor, whose own head it goes before. The program is looked up at each
    call, so a model that leaves the fast path is back on TRL's head; one that was given another adapter since
    it was read must be read again by :func:`..models.fast_path.apply_fast_path` before it trains.

    Args:
        model: transformers' causal model, or PEFT's wrapper around one.
        wanted: of :data:`METRICS`.
        temperature: divides the logits.

    Raises:
        ValueError: for a field that is not among :data:`METRICS`.
    """
    if unknown := set(wanted) - set(METRICS):
        raise ValueError(f"the fast head finds {', '.join(METRICS)}, not {', '.join(sorted(unknown))}")
    causal = causal_model(model)
    plain, last = causal.forward, _Last()

    @functools.wraps(plain)
    def forward(self: Any, *args: Any, labels: Any = None, fused_lm_head: bool = False, **given: Any) -> Any:
        program = program_of(self) if fused_lm_head and not args and labels is not None else None
        if program is not None and _switches(model) and not program.is_current():
            program = None
        named = {name for name, value in given.items() if value is not None and name != "use_cache"}
        if program is None or "input_ids" not in named or not named <= UNDERSTOOD:
            return plain(*args, labels=labels, fused_lm_head=fused_lm_head, **given)
        batch = last.packed(given["input_ids"], given.get("attention_mask"), labels)
        return _answer(program, batch, wanted, temperature)

    causal.forward = MethodType(forward, causal)


def _switches(model: Any) -> bool:
    """Whether a reference may be another adapter, of which the program knows nothing."""
    return isinstance(model, PeftModel) and len(model.peft_config) > 1


@dataclass(frozen=True)
class _Labelled:
    """Rows end to end, and where in them labels are predicted.

    Args:
        packed: the rows.
        rows_S: places in the packed row whose next token is labelled.
        labels_S: those tokens.
        mask_BT: bool, (B, T - 1), where the labelled tokens are, the first of each row left out.
    """

    packed: PackedTokens
    rows_S: torch.Tensor
    labels_S: torch.Tensor
    mask_BT: torch.Tensor

    def spread(self, values_S: torch.Tensor) -> torch.Tensor:
        """(B, T - 1) with the values where the labels are, zeros elsewhere; differentiable."""
        return values_S.new_zeros(self.mask_BT.shape).masked_scatter(self.mask_BT, values_S)


class _Last:
    """The rows of the last call: the reference reads the same ones, and packing waits for the device."""

    def __init__(self) -> None:
        self.read: tuple[Any, ...] = ()
        self.batch: _Labelled | None = None

    def packed(
        self, ids_BT: torch.Tensor, attended_BT: torch.Tensor | None, labels_BT: torch.Tensor
    ) -> _Labelled:
        read = (ids_BT, attended_BT, labels_BT)
        if self.batch is None or any(a is not b for a, b in zip(read, self.read, strict=True)):
            self.read, self.batch = read, _labelled(*read)
        return self.batch


def _labelled(ids_BT: torch.Tensor, attended_BT: torch.Tensor | None, labels_BT: torch.Tensor) -> _Labelled:
    packed, places_P = pack_padded(ids_BT, attended_BT)
    mask_BT = labels_BT[:, 1:] != IGNORE
    if attended_BT is not None:  # nothing attends to padding, and it predicts nothing
        mask_BT = mask_BT & (attended_BT[:, :-1] != 0)
    predicts_BT = torch.nn.functional.pad(mask_BT, (0, 1))
    rows_S = predicts_BT.reshape(-1)[places_P].nonzero().squeeze(1)
    return _Labelled(packed, rows_S, labels_BT[:, 1:][mask_BT], mask_BT)


def _answer(
    program: DecoderProgram, batch: _Labelled, wanted: Collection[str], temperature: float
) -> FusedCausalLMOutput:
    with torch.autocast(batch.labels_S.device.type, enabled=False):  # types are the program's own
        found, mean_logits = program.answers(batch.packed, batch.rows_S, batch.labels_S, temperature)
        means_S = mean_logits() if "mean_logits" in wanted else None
    return FusedCausalLMOutput(
        loss=-found.logp_S.sum() / max(1, len(found.logp_S)),
        log_probs=batch.spread(found.logp_S),
        entropy=batch.spread(found.entropy_S) if "entropy" in wanted else None,
        mean_logits=None if means_S is None else batch.spread(means_S),
        is_top1=batch.spread(found.correct_S) if "is_top1" in wanted else None,
        label_mask=batch.mask_BT,
    )
