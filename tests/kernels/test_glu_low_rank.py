"""Gated units with low-rank updates: in place, over dh's memory, as the separate steps; refusals."""

from __future__ import annotations

import pytest
import torch

from whet.kernels.backend import interpreting
from whet.kernels.glu import KINDS, glu_backward, glu_forward
from whet.kernels.glu_low_rank import MOST_RANK, LowRank, glu_low_rank_backward, glu_low_rank_forward
from whet.kernels.spec import relative_error

DEVICE = torch.device("cuda" if torch.cuda.is_available() and not interpreting() else "cpu")
TOKENS, WIDTH, RANK = 37, 75, 6


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def update(seed: int, rank: int = RANK) -> LowRank:
    """Left: some columns of t; right: rows of sB transposed, with another layer's columns beside them."""
    t, sb = drawn(TOKENS, 2 * rank, seed=seed), drawn(WIDTH, 2 * rank, seed=seed + 1)
    return t[:, rank:], sb[:, rank:].T


def steps(
    gate: torch.Tensor, up: torch.Tensor, dh: torch.Tensor, kind: str, by: list[LowRank]
) -> list[torch.Tensor]:
    """dgate, dup and h, one operation after another on tensors of their own."""
    gate, up, dh = (x + left @ right for x, (left, right) in zip((gate, up, dh), by, strict=True))
    h = glu_forward(gate, up, kind)
    dgate, dup = glu_backward(dh, gate, up, kind)
    return [dgate, dup, h]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [RANK, 40])
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_backward_in_place_equals_the_separate_steps(backend: str, kind: str, rank: int) -> None:
    both, wide = drawn(TOKENS, 2 * WIDTH + 3, seed=0), drawn(TOKENS, WIDTH + 2, seed=1)
    before, wide_before = both.clone(), wide.clone()
    gate, up, dh = both[:, 1 : 1 + WIDTH], both[:, 2 + WIDTH : 2 + 2 * WIDTH], wide[:, :WIDTH]
    gate_update, up_update, dh_update = (update(seed, rank) for seed in (10, 20, 30))
    exact = steps(gate, up, dh, kind, [gate_update, up_update, dh_update])
    h = glu_low_rank_forward(gate, up, kind, gate_update=gate_update, up_update=up_update)
    assert torch.equal(both, before)
    assert relative_error(h, exact[2]) < 1e-5

    results = glu_low_rank_backward(
        dh, gate, up, kind, dh_update=dh_update, gate_update=gate_update, up_update=up_update, h_TF=dh
    )
    assert results[0] is gate and results[1] is up
    for value, truth in zip((gate, up, dh), exact, strict=True):
        assert relative_error(value, truth) < 1e-5
    between = [0, 1 + WIDTH, 2 + 2 * WIDTH]
    assert torch.equal(both[:, between], before[:, between])
    assert torch.equal(wide[:, WIDTH:], wide_before[:, WIDTH:])


def test_many_tiles_a_program(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that goes down several tiles, the last of them beyond the end, as long inputs have it."""
    monkeypatch.setattr("whet.kernels.glu_low_rank._PROGRAMS", 1)
    gate, up = drawn(2, TOKENS, WIDTH, seed=0)
    gate_update, up_update = update(10), update(20)
    h = glu_low_rank_forward(gate, up, "swiglu", gate_update=gate_update, up_update=up_update)
    exact = glu_forward(gate + gate_update[0] @ gate_update[1], up + up_update[0] @ up_update[1], "swiglu")
    assert relative_error(h, exact) < 1e-5


def test_without_updates_it_is_the_gated_unit(backend: str) -> None:
    gate, up = drawn(2, TOKENS, WIDTH, seed=0)
    dh = drawn(TOKENS, WIDTH, seed=1)
    assert torch.equal(glu_low_rank_forward(gate, up, "swiglu"), glu_forward(gate, up, "swiglu"))
    exact = glu_backward(dh, gate.clone(), up.clone(), "swiglu")
    assert all(map(torch.equal, glu_low_rank_backward(dh, gate, up, "swiglu"), exact))


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_one_row_does_not_reach_another(backend: str) -> None:
    """An infinite row of a factor stays in its own row."""
    gate, up = drawn(2, TOKENS, WIDTH, seed=0)
    left, right = update(10)
    exact = glu_low_rank_forward(gate, up, "swiglu", gate_update=(left, right))
    left = left.clone()
    left[3] = float("inf")
    h = glu_low_rank_forward(gate, up, "swiglu", gate_update=(left, right))
    others = torch.arange(TOKENS, device=DEVICE) != 3
    assert torch.equal(h[others], exact[others])
    assert not h[3].isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    gate, up = drawn(2, TOKENS, WIDTH, seed=0)
    left, right = update(10)
    with pytest.raises(ValueError, match="do not make an update of"):
        glu_low_rank_forward(gate, up, "swiglu", gate_update=(left, right[:, 1:]))
    with pytest.raises(ValueError, match=f"rank {MOST_RANK + 1}; the kernels take"):
        glu_low_rank_forward(gate, up, "swiglu", up_update=update(10, MOST_RANK + 1))
    with pytest.raises(ValueError, match=r"gate is torch\.float32"):
        glu_low_rank_backward(gate, gate, up, "swiglu", dh_update=(left.half(), right.half()))
