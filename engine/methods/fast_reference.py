"""A reference model by the fast path, in place of switching PEFT's adapters off and on at every step.

TRL's trainers take log-probabilities of the reference from the batch where these were computed beforehand;
here they are computed when they are needed, by :meth:`.fast_head.FastHead.reference_log_probs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..data.masking import IGNORE
from .fast_head import FastHead

GIVEN = ("ref_chosen_logps", "ref_rejected_logps")
"""Columns that a data set may bring; TRL reads them where it was told that they were computed beforehand."""
READ = ("input_ids", "attention_mask", "completion_mask")
RATED = {f"{prefix}{name}" for prefix in ("", "KL_") for name in READ} | {
    "label",
    "ref_logps",
    "ref_KL_logps",
}
"""Columns of KTO's batches. A script's own collator may bring more, which the fast path would not read."""


class FastReference:
    """Goes before a trainer of TRL's that measures from a reference, among a class's bases."""

    head: FastHead | None = None
    """Of a model on the fast path, once it is put in place."""

    def _knowing_head(self) -> FastHead | None:
        """The head, where it knows the reference."""
        own: Any = self
        head = self.head
        if head is None or own.precompute_ref_logps or own.ref_model is not None:
            return None
        return head if head.knows_reference else None

    @contextmanager
    def _reading_the_batch(self) -> Iterator[None]:
        """The reference's numbers are taken from the batch while the context lasts."""
        own: Any = self
        own.precompute_ref_logps = True
        try:
            yield
        finally:
            own.precompute_ref_logps = False


class PairReference(FastReference):
    """DPO's: of both answers."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        own: Any = self
        plain: Any = super()
        head = self._knowing_head()
        rows = {name: value for name, value in inputs.items() if name not in GIVEN}
        asked = {name: value for name, value in rows.items() if name != "completion_mask"}
        if head is None or own.ld_alpha is not None or not head.understands(asked):
            return plain._compute_loss(model, inputs, return_outputs)

        def reference() -> dict[str, torch.Tensor]:
            chosen, rejected = head.reference_log_probs().sum(1).chunk(2)
            return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

        with self._reading_the_batch():
            return plain._compute_loss(model, _Asked(rows, reference), return_outputs)


class RatedReference(FastReference):
    """KTO's: of the answers, and of those that tell how far the model has moved."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        own: Any = self
        plain: Any = super()
        head = self._knowing_head()
        if head is None or not set(inputs) <= RATED:
            return plain._compute_loss(model, inputs, return_outputs)
        found = {"ref_logps": _sums(head, inputs, "")}
        if own.calculate_KL:
            found["ref_KL_logps"] = _sums(head, inputs, "KL_")
        with self._reading_the_batch():
            return plain._compute_loss(model, {**inputs, **found}, return_outputs)


def _sums(head: FastHead, inputs: dict[str, Any], prefix: str) -> torch.Tensor:
    """(B,) of the columns of a batch with a prefix."""
    ids, attended, answered = (inputs[prefix + name] for name in READ)
    batch = head.read(ids, attended, ids.masked_fill(answered == 0, IGNORE))
    return head.reference_log_probs(batch).sum(1)


class _Asked(dict[str, Any]):
    """A batch whose reference is computed when it is asked for: the model has read the rows by then."""

    def __init__(self, batch: dict[str, Any], reference: Callable[[], dict[str, torch.Tensor]]) -> None:
        super().__init__(batch)
        self.reference = reference

    def __missing__(self, name: str) -> Any:
        found = self.reference()
        self.update(found)
        return found[name]
