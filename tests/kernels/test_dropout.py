"""Masks of dropout are as random as masks have to be, and repeat by their seed."""

from __future__ import annotations

import pytest
import torch

from whet.kernels.attention import attention_forward
from whet.kernels.dropout import dropout, dropout_forward


def mask(seed: int, rate: float, rows: int = 400, columns: int = 257) -> torch.Tensor:
    ones = torch.ones(rows, columns)
    return dropout_forward(ones, rate, torch.tensor([seed], dtype=torch.int32))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_and_the_scale(rate: float) -> None:
    found = mask(1, rate)
    assert set(found.unique().tolist()) == {0.0, float(torch.tensor(1.0) * (1 / (1 - rate)))}
    spread = (rate * (1 - rate) / found.numel()) ** 0.5
    assert abs(float((found == 0).float().mean()) - rate) < 4 * spread
    for dim in (0, 1):  # no row or column is dropped more than chance does it
        shares = (found == 0).float().mean(dim)
        expected = (rate * (1 - rate) / found.shape[dim]) ** 0.5
        assert float(shares.std()) == pytest.approx(expected, rel=0.25)


def test_seeds_rows_and_columns_are_independent() -> None:
    found = mask(1, 0.5) > 0
    for other in (mask(2, 0.5) > 0, found.roll(1, 0), found.roll(1, 1), found.roll(7, 1)):
        assert abs(float((found == other).float().mean()) - 0.5) < 4 * 0.5 / found.numel() ** 0.5
    assert torch.equal(found, mask(1, 0.5) > 0)


def test_the_gradient_goes_where_the_value_went() -> None:
    x = torch.randn(9, 33, dtype=torch.float64, requires_grad=True)
    seed = torch.tensor([3], dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda value: dropout(value, 0.3, seed), (x,))


def test_attention_asks_for_a_seed() -> None:
    q = torch.randn(4, 2, 8)
    with pytest.raises(ValueError, match="seed"):
        attention_forward(q, q, q, torch.tensor([0, 4], dtype=torch.int32), 4, dropout=0.1)
    with pytest.raises(ValueError, match="below 1"):
        attention_forward(q, q, q, torch.tensor([0, 4], dtype=torch.int32), 4, dropout=1.0)
