"""Log-probabilities as TRL's trainers ask a model for them, answered on the fast path.

TRL gives a model a forward pass that, called with ``labels`` and ``fused_lm_head=True``, returns the
log-probability of every labelled token instead of logits. :func:`put_fast_head` goes before it: rows lie end
to end without padding, documents never see one another, and the head sees the labelled places alone. Losses,
metrics, and the model with its adapter off as reference stay TRL's.

Legend: B rows of T tokens, padding included; S labelled places.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from trl.trainer.utils import FusedCausalLMOutput

from whet.kernels.selective_log_softmax import PredictedTokens

from ..data.masking import IGNORE
from ..models.fast_path import PackedTokens, causal_model, fill_up, pack_padded, program_of

METRICS = ("log_probs", "entropy", "mean_logits", "is_top1")
"""TRL's names of what the fast head finds."""
COPY = "ref"
"""TRL's name of its frozen copy of an adapter that had learnt."""
UNDERSTOOD = {"input_ids", "attention_mask"}
TOKEN_MULTIPLE = 64
"""Packed rows are filled up to a multiple of this, so that few shapes ever occur."""


def put_fast_head(model: Any, wanted: Collection[str] = ("log_probs",), temperature: float = 1.0) -> FastHead:
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
    plain, head = causal.forward, FastHead(model, wanted, temperature)

    @functools.wraps(plain)
    def forward(self: Any, *args: Any, labels: Any = None, fused_lm_head: bool = False, **given: Any) -> Any:
        if fused_lm_head and not args and labels is not None and head.understands(given):
            return head.answer(head.read(given["input_ids"], given.get("attention_mask"), labels))
        return plain(*args, labels=labels, fused_lm_head=fused_lm_head, **given)

    causal.forward = MethodType(forward, causal)
    return head


class FastHead:
    """What :func:`put_fast_head` puts before TRL's head. See there for the arguments."""

    def __init__(self, model: Any, wanted: Collection[str], temperature: float) -> None:
        self.model, self.wanted, self.temperature = model, wanted, temperature
        self._read: tuple[Any, ...] = ()
        self._batch: Labelled | None = None

    @property
    def knows_reference(self) -> bool:
        """Whether :meth:`reference_log_probs` are those of the model that TRL measures from."""
        program = program_of(self.model)
        if program is None or not program.separable:
            return False
        adapter = self._reference()
        return adapter is None or (program.is_current() and program.knows(adapter))

    def understands(self, given: dict[str, Any]) -> bool:
        """Whether the fast path computes what a call with these arguments asks for."""
        program = program_of(self.model)
        if program is None or (self._switches() and not program.is_current()):
            return False
        named = {name for name, value in given.items() if value is not None and name != "use_cache"}
        return "input_ids" in named and named <= UNDERSTOOD

    def read(
        self, ids_BT: torch.Tensor, attended_BT: torch.Tensor | None, labels_BT: torch.Tensor
    ) -> Labelled:
        """Padded rows as a packed one. The same tensors as in the last call are not read again: a reference
        gets them too, and packing waits for the device."""
        read = (ids_BT, attended_BT, labels_BT)
        if self._batch is None or any(a is not b for a, b in zip(read, self._read, strict=True)):
            self._read, self._batch = read, _labelled(*read)
        return self._batch

    def answer(self, batch: Labelled) -> FusedCausalLMOutput:
        """What TRL's head returns."""
        wanted = self.wanted
        found, mean_logits = self._answers(batch)
        means_S = mean_logits() if "mean_logits" in wanted else None
        return FusedCausalLMOutput(
            loss=-found.logp_S.sum() / max(1, len(found.logp_S)),
            log_probs=batch.spread(found.logp_S),
            entropy=batch.spread(found.entropy_S) if "entropy" in wanted else None,
            mean_logits=None if means_S is None else batch.spread(means_S),
            is_top1=batch.spread(found.correct_S) if "is_top1" in wanted else None,
            label_mask=batch.mask_BT,
        )

    def reference_log_probs(self, batch: Labelled | None = None) -> torch.Tensor:
        """(B, T - 1) of the frozen base, or of TRL's copy of an adapter that had learnt, without a gradient,
        of the rows that were read last or of others."""
        program, batch = program_of(self.model), batch or self._batch
        assert program is not None and batch is not None
        with program.reference(self._reference()):
            return batch.spread(self._answers(batch)[0].logp_S)

    def _answers(self, batch: Labelled) -> tuple[PredictedTokens, Callable[[], torch.Tensor]]:
        program = program_of(self.model)
        assert program is not None
        with torch.autocast(batch.labels_S.device.type, enabled=False):  # types are the program's own
            return program.answers(batch.packed, batch.rows_S, batch.labels_S, self.temperature)

    def _switches(self) -> bool:
        """Whether another adapter may be active than the one that the program was read with."""
        return isinstance(self.model, PeftModel) and len(self.model.peft_config) > 1

    def _reference(self) -> str | None:
        """The adapter that TRL measures from; None is none."""
        return COPY if isinstance(self.model, PeftModel) and COPY in self.model.peft_config else None


@dataclass(frozen=True)
class Labelled:
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


def _labelled(ids_BT: torch.Tensor, attended_BT: torch.Tensor | None, labels_BT: torch.Tensor) -> Labelled:
    packed, places_P = pack_padded(ids_BT, attended_BT)
    mask_BT = labels_BT[:, 1:] != IGNORE
    if attended_BT is not None:  # nothing attends to padding, and it predicts nothing
        mask_BT = mask_BT & (attended_BT[:, :-1] != 0)
    predicts_BT = torch.nn.functional.pad(mask_BT, (0, 1))
    rows_S = predicts_BT.reshape(-1)[places_P].nonzero().squeeze(1)
    packed = fill_up(packed, TOKEN_MULTIPLE)
    return Labelled(packed, rows_S, labels_BT[:, 1:][mask_BT], mask_BT)
