"""What the parity check cannot say of selective log-softmax: what it keeps, entropies, tiny factors."""

from __future__ import annotations

import pytest
import torch

from whet.kernels.backend import interpreting
from whet.kernels.linear_cross_entropy import linear_cross_entropy
from whet.kernels.selective_log_softmax import (
    mean_logits,
    predicted_tokens,
    reference,
    selective_log_softmax,
)
from whet.kernels.spec import relative_error
from whet.kernels.vocabulary_head import LogitMap

ON_GPU = torch.cuda.is_available() and not interpreting()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _head(rows: int, width: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    labels = torch.randint(vocabulary, (rows,), device=DEVICE)
    hidden, weight = (torch.randn(n, width, device=DEVICE) for n in (rows, vocabulary))
    return hidden, weight / width**0.5, labels


@pytest.mark.parametrize("trained", [False, True])
def test_no_logits_are_kept_for_the_backward_pass(backend: str, trained: bool) -> None:
    """A row's finished gradient under a frozen head; what makes logits again where the head trains."""
    hidden, weight, labels = _head(20, 8, 500)
    hidden.requires_grad_()
    weight.requires_grad_(trained)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        selective_log_softmax(hidden, weight, labels)
    assert sorted(kept) == ([20, 20, hidden.numel(), weight.numel()] if trained else [20, hidden.numel()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_finished_gradient_is_the_one_of_a_head_that_trains(backend: str, dtype: torch.dtype) -> None:
    hidden, weight, labels = _head(11, 24, 700)
    labels[3] = -100
    upstream = torch.randn(11, device=DEVICE)
    upstream[3] = torch.inf  # of a loss that is singular at log p = 0
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    found = {}
    for name, trained in (("finished", False), ("made again", True)):
        x, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_(trained)
        logp = selective_log_softmax(x, head, labels, softcap=3.0, temperature=0.8, chunk=4)
        (found[name],) = torch.autograd.grad(logp, x, upstream)
    x = hidden.double().requires_grad_()
    exact_logp = reference(x, weight.double(), labels, softcap=3.0, temperature=0.8)
    (exact,) = torch.autograd.grad(exact_logp, x, upstream.double().where(labels != -100, 0.0))
    limit = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    for gradient in found.values():
        assert gradient.dtype == dtype and not gradient[3].any()
        assert relative_error(gradient, exact) < limit


def test_its_sum_is_the_negative_loss(backend: str) -> None:
    hidden, weight, labels = _head(9, 16, 300)
    labels[2] = -100
    hidden.requires_grad_()
    logp = selective_log_softmax(hidden, weight, labels, softcap=2.0, chunk=4)
    loss = linear_cross_entropy(hidden, weight, labels, softcap=2.0)
    assert logp[2] == 0 and torch.allclose(-logp.sum(), loss)
    of_logp, of_loss = (torch.autograd.grad(each, hidden)[0] for each in (-logp.sum(), loss))
    assert relative_error(of_logp, of_loss) < 1e-5
    assert not of_logp[2].any()


def test_temperature_and_entropy_are_the_distributions(backend: str) -> None:
    hidden, weight, labels = _head(9, 16, 300)
    hidden.requires_grad_()
    logp, entropy = selective_log_softmax(hidden, weight, labels, temperature=0.5, entropy=True)
    exact = torch.distributions.Categorical(logits=(hidden @ weight.T / 0.5).double())
    assert relative_error(logp, exact.log_prob(labels)) < 1e-6
    assert relative_error(entropy, exact.entropy()) < 1e-6
    assert logp.requires_grad and not entropy.requires_grad
    with torch.no_grad():
        assert torch.equal(selective_log_softmax(hidden, weight, labels, temperature=0.5), logp)


def test_factors_of_any_size_survive_fp16(backend: str) -> None:
    """A policy gradient divides by the tokens of a batch; a scaled loss multiplies by 65,536."""
    hidden, weight, labels = _head(5, 16, 1000)
    hidden, weight = hidden.half().requires_grad_(), weight.half().requires_grad_()
    exact_hidden, exact_weight = hidden.detach().double(), weight.detach().double().requires_grad_()
    factors = torch.tensor([1.0, -0.5, 0.01, 0.7, -1.0], device=DEVICE)
    for size in (1e-5, 1.0, 1000.0):
        logp = selective_log_softmax(hidden, weight, labels)
        of_weight = torch.autograd.grad(logp, weight, factors * size)[0]
        exact_logp = reference(exact_hidden, exact_weight, labels)
        exact = torch.autograd.grad(exact_logp, exact_weight, factors * size)[0]
        if size == 1e-5:  # what fp16 itself can still say of the result
            assert relative_error(of_weight, exact) < relative_error(exact.half(), exact) + 1e-3
        else:
            assert relative_error(of_weight, exact) < 1e-3


def test_a_quantised_head_gives_the_gradients_of_the_dense_one(backend: str) -> None:
    hidden, weight, labels = _head(6, 16, 300)

    class Head:
        shape = weight.shape

        def rows(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
            return weight[start:stop].to(dtype)

    gradients = []
    for head in (weight, Head()):
        x = hidden.clone().requires_grad_()
        gradients.append(torch.autograd.grad(selective_log_softmax(x, head, labels).square().sum(), x)[0])
    assert relative_error(gradients[1], gradients[0]) < 1e-6 and gradients[0].any()


def test_a_temperature_must_be_positive() -> None:
    hidden, weight, labels = _head(2, 8, 20)
    with pytest.raises(ValueError, match="temperature"):
        selective_log_softmax(hidden, weight, labels, temperature=0.0)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_what_metrics_need_is_found_in_the_same_pass(backend: str, softcap: float | None) -> None:
    hidden, weight, labels = _head(9, 16, 300)
    bias = torch.randn(300, device=DEVICE)
    logits = 0.7 * (hidden @ weight.T + bias).double()
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    labels[:4] = logits.argmax(1)[:4]
    found = predicted_tokens(
        hidden.requires_grad_(), weight, labels, bias_V=bias, softcap=softcap, logit_scale=0.7, chunk=4
    )
    assert relative_error(found.logp_S, logits.log_softmax(1).gather(1, labels[:, None])[:, 0]) < 1e-6
    assert torch.equal(found.correct_S, logits.argmax(1) == labels) and found.correct_S[:4].all()
    assert [each.requires_grad for each in found] == [True, False, False]
    mean = mean_logits(hidden, weight, bias, LogitMap(softcap, 0.7), chunk=4)
    torch.testing.assert_close(mean.double(), logits.mean(1), rtol=1e-5, atol=1e-5)
