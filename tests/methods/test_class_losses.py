"""Losses of classes divide by what counts in a step, which may be nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from whet.engine.methods.classification.trainer import IGNORED, cross_entropy


@pytest.mark.parametrize("given", [None, 0, torch.tensor(0)])
def test_a_step_without_labels_teaches_nothing(given: Any) -> None:
    logits_BTC = torch.randn(2, 3, 4, requires_grad=True)
    loss = cross_entropy()(SimpleNamespace(logits=logits_BTC), torch.full((2, 3), IGNORED), given)
    loss.backward()
    assert loss.item() == 0 and logits_BTC.grad is not None and not logits_BTC.grad.any()


def test_a_micro_batch_is_divided_by_its_step() -> None:
    logits_BC, labels_B = torch.randn(4, 3), torch.tensor([0, 2, IGNORED, 1])
    whole = cross_entropy()(SimpleNamespace(logits=logits_BC), labels_B)
    parts = [
        cross_entropy()(SimpleNamespace(logits=logits_BC[rows]), labels_B[rows], torch.tensor(3))
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert sum(parts) == pytest.approx(float(whole), rel=1e-6)
