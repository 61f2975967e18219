"""Rotary embedding beside transformers' modules; in place and out of place; values and gaps untouched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb as partial_rotary
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb as rotary

from whet.kernels.backend import forced, interpreting
from whet.kernels.rope import rope, rope_backward, rope_forward
from whet.kernels.rope_cases import rotary_tables
from whet.kernels.spec import relative_error

DEVICE = torch.device("cuda" if torch.cuda.is_available() and not interpreting() else "cpu")
TOKENS, HEADS, KV_HEADS, SIZE = 6, 5, 2, 32
TOTAL = HEADS + 2 * KV_HEADS


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def arguments(width: int = SIZE) -> tuple[Any, ...]:
    """Tables, positions of two documents, heads."""
    cos, sin = rotary_tables(8, width, device=DEVICE)
    return cos, sin, torch.tensor([0, 1, 2, 3, 0, 1], device=DEVICE), HEADS, KV_HEADS


def norms() -> dict[str, Any]:
    q_weight, k_weight = drawn(2, SIZE, seed=1)
    return {"q_weight": q_weight, "k_weight": k_weight, "eps": 1e-6}


def by_transformers(qkv: torch.Tensor, width: int, q_norm: Any = None, k_norm: Any = None) -> torch.Tensor:
    """The same with transformers' (batch, heads, tokens, size)."""
    cos, sin, positions, *_ = arguments(width)
    q, k, v = qkv.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
    if q_norm is not None:
        q, k = q_norm(q), k_norm(k)
    turn = rotary if width == SIZE else partial_rotary
    q, k = turn(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos[positions][None], sin[positions][None])
    return torch.cat((q[0].transpose(0, 1), k[0].transpose(0, 1), v), dim=1)


def gradient_of(leaf: torch.Tensor) -> torch.Tensor:
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("width", [SIZE, 12])
def test_turns_as_transformers_does(backend: str, width: int) -> None:
    qkv = drawn(TOKENS, TOTAL, SIZE)
    out = rope_forward(qkv, *arguments(width))
    assert relative_error(out, by_transformers(qkv, width)) < 1e-6
    assert relative_error(out, qkv) > 0.1


@pytest.mark.parametrize(("module", "offset"), [(Qwen3RMSNorm, 0.0), (Gemma3RMSNorm, 1.0)])
def test_norms_and_their_gradients_as_transformers_has_them(backend: str, module: Any, offset: float) -> None:
    qkv, gradient, given = drawn(TOKENS, TOTAL, SIZE), drawn(TOKENS, TOTAL, SIZE, seed=2), norms()
    q_norm, k_norm = module(SIZE, eps=given["eps"]), module(SIZE, eps=given["eps"])
    for norm, name in ((q_norm, "q_weight"), (k_norm, "k_weight")):
        norm.weight.data = given[name].clone()
    leaf = qkv.clone().requires_grad_()
    exact = by_transformers(leaf, SIZE, q_norm, k_norm)
    exact.backward(gradient)

    out = rope_forward(qkv, *arguments(), **given, offset=offset)
    dqkv, dq, dk = rope_backward(
        gradient.clone(), qkv, *arguments(), **given, offset=offset, weight_gradient=True
    )
    assert relative_error(out, exact) < 1e-6
    for ours, theirs in ((dqkv, leaf), (dq, q_norm.weight), (dk, k_norm.weight)):
        assert ours is not None
        assert relative_error(ours, gradient_of(theirs)) < 1e-6


@pytest.mark.parametrize("width", [SIZE, 12])
@pytest.mark.parametrize("norm", [False, True])
def test_in_place_is_out_of_place(backend: str, width: int, norm: bool) -> None:
    """Bit for bit, in a wider buffer whose other columns keep what they hold."""
    given = norms() if norm else {}
    buffer = drawn(TOKENS, TOTAL * SIZE + 7)
    before = buffer.clone()
    qkv = buffer[:, 3 : 3 + TOTAL * SIZE].unflatten(1, (TOTAL, SIZE))
    apart = rope_forward(qkv, *arguments(width), **given)
    assert torch.equal(buffer, before)
    assert torch.equal(apart[:, HEADS + KV_HEADS :], qkv[:, HEADS + KV_HEADS :])

    original = qkv.clone()
    assert rope_forward(qkv, *arguments(width), **given, out_TCE=qkv) is qkv
    assert torch.equal(qkv, apart)
    assert torch.equal(buffer[:, :3], before[:, :3]) and torch.equal(buffer[:, -4:], before[:, -4:])

    gradient = drawn(TOKENS, TOTAL, SIZE, seed=2)
    other = torch.full_like(gradient, torch.nan)
    kept = gradient.clone()
    rope_backward(gradient, original, *arguments(width), **given, out_TCE=other)
    assert torch.equal(gradient, kept)
    written, *_ = rope_backward(gradient, original, *arguments(width), **given)
    assert written is gradient
    assert torch.equal(gradient, other)


def test_backward_turns_back(backend: str) -> None:
    qkv = drawn(TOKENS, TOTAL, SIZE)
    turned = rope_forward(qkv, *arguments())
    back, dq, dk = rope_backward(turned, None, *arguments(), weight_gradient=True)
    assert relative_error(back, qkv) < 1e-6
    assert dq is None and dk is None


@pytest.mark.parametrize("norm", [False, True])
def test_gradients_may_come_apart(backend: str, norm: bool) -> None:
    """Queries', keys' and values' gradients as an attention kernel leaves them: three tensors."""
    given = {**norms(), "weight_gradient": True} if norm else {}
    qkv, packed = drawn(TOKENS, TOTAL, SIZE), drawn(TOKENS, TOTAL, SIZE, seed=2)
    q, k, v = (part.clone() for part in packed.split((HEADS, KV_HEADS, KV_HEADS), dim=1))
    k_strided = k.transpose(0, 1).contiguous().transpose(0, 1)
    out = torch.full_like(packed, torch.nan)
    written, *weights = rope_backward((q, k_strided, v), qkv, *arguments(), **given, out_TCE=out)
    exact, *exact_weights = rope_backward(packed, qkv, *arguments(), **given)
    assert written is out
    assert torch.equal(out, exact)
    for ours, theirs in zip(weights, exact_weights, strict=True):
        assert (ours is None) == (theirs is None) == (not norm)
        assert ours is None or theirs is None or torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="need out_TCE"):
        rope_backward((q, k, v), qkv, *arguments(), **given)


def test_positions_may_be_int32_and_inputs_transposed(backend: str) -> None:
    cos, sin, positions, *heads = arguments()
    qkv = drawn(TOKENS, SIZE, TOTAL).transpose(1, 2)
    exact = rope_forward(qkv.contiguous(), cos, sin, positions, *heads)
    assert torch.equal(rope_forward(qkv, cos, sin, positions.int(), *heads), exact)


def test_autograd_takes_a_transposed_gradient(backend: str) -> None:
    qkv, weights = drawn(TOKENS, TOTAL, SIZE).requires_grad_(), norms()
    gradient = drawn(TOKENS, SIZE, TOTAL, seed=2).transpose(1, 2)
    out = rope(qkv, *arguments(), **weights)
    (dqkv,) = torch.autograd.grad(out, qkv, gradient)
    exact, *_ = rope_backward(gradient.contiguous(), qkv.detach(), *arguments(), **weights)
    assert torch.equal(dqkv, exact)


def test_weight_gradients_of_many_tokens_are_complete_and_repeat(backend: str, monkeypatch: Any) -> None:
    """More tokens than groups, and a last group that is not full."""
    monkeypatch.setattr("whet.kernels.rope._GROUPS", 4)
    tokens = 11
    cos, sin, _, *heads = arguments()
    given, positions = norms(), torch.arange(tokens, device=DEVICE) % 8
    qkv, gradient = drawn(tokens, TOTAL, SIZE), drawn(tokens, TOTAL, SIZE, seed=2)

    def run() -> tuple[torch.Tensor | None, ...]:
        return rope_backward(
            gradient.clone(), qkv, cos, sin, positions, *heads, **given, weight_gradient=True
        )

    first, again = run(), run()
    wide: dict[str, Any] = {
        name: value.double() if isinstance(value, torch.Tensor) else value for name, value in given.items()
    }
    with forced("reference"):
        exact = rope_backward(
            gradient.double(), qkv.double(), cos, sin, positions, *heads, **wide, weight_gradient=True
        )
    for ours, repeated, true in zip(first, again, exact, strict=True):
        assert ours is not None and repeated is not None and true is not None
        assert torch.equal(ours, repeated)
        assert relative_error(ours, true) < 1e-6


def test_what_does_not_fit_is_refused() -> None:
    qkv, given = drawn(TOKENS, TOTAL, SIZE), norms()
    cos, sin, positions, *heads = arguments()
    with pytest.raises(ValueError, match="does not hold 5 query"):
        rope_forward(qkv[:, 1:], cos, sin, positions, *heads)
    with pytest.raises(ValueError, match="rotary width 64"):
        rope_forward(qkv, *rotary_tables(8, 64, device=DEVICE), positions, *heads)
    with pytest.raises(ValueError, match="positions for 6 tokens"):
        rope_forward(qkv, cos, sin, positions[1:], *heads)
    with pytest.raises(ValueError, match="both weights"):
        rope_forward(qkv, cos, sin, positions, *heads, q_weight=given["q_weight"])
    with pytest.raises(ValueError, match="needs qkv_TCE"):
        rope_backward(qkv, None, cos, sin, positions, *heads, **given)
    with forced("triton"), pytest.raises(ValueError, match="unit stride"):
        rope_forward(qkv, cos, sin, positions, *heads, out_TCE=drawn(TOKENS, SIZE, TOTAL).transpose(1, 2))
