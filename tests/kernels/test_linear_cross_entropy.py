"""What the parity check cannot say of head and cross-entropy: statistics, other heads, chunks, extremes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from whet.kernels import vocabulary_head
from whet.kernels.backend import forced, interpreting
from whet.kernels.linear_cross_entropy import (
    LossOptions,
    _loss_rows,
    _room,
    linear_cross_entropy,
    linear_cross_entropy_forward,
    reference,
)
from whet.kernels.spec import relative_error
from whet.kernels.vocabulary_head import LogitMap, Wanted, chunk_rows, logit_chunks, scaled

ON_GPU = torch.cuda.is_available() and not interpreting()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def _head(rows: int, width: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    labels = torch.randint(vocabulary, (rows,), device=DEVICE)
    return _normal(rows, width), _normal(vocabulary, width) / width**0.5, labels


def _made(gradient: torch.Tensor | None) -> torch.Tensor:
    assert gradient is not None
    return gradient


class _RowByRow:
    """A head that is never whole; keeps what was asked of it."""

    def __init__(self, dense: torch.Tensor) -> None:
        self._dense = dense
        self.asked: list[tuple[int, int]] = []

    @property
    def shape(self) -> torch.Size:
        return self._dense.shape

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        self.asked.append((start, stop))
        return self._dense[start:stop].to(dtype)


def test_statistics_count_what_argmax_finds_first_and_sum_entropies(backend: str) -> None:
    # Small whole numbers: every row has several greatest logits.
    logits = torch.randint(-2, 3, (40, 90), device=DEVICE).float()
    labels = logits.argmax(1)
    labels[::3] = logits.flip(1).argmax(1)[::3].mul(-1).add(89)  # the last of the greatest
    labels[1::3] = 7
    labels[4] = -100
    loss, found = linear_cross_entropy(torch.eye(40, device=DEVICE), logits.T, labels, statistics=True)
    counted = labels != -100
    assert 13 <= found.correct < 30
    assert found.correct == ((logits.argmax(1) == labels) & counted).sum()
    entropies = torch.distributions.Categorical(logits=logits.double()).entropy()
    assert found.entropy.item() == pytest.approx(entropies[counted].sum().item(), rel=1e-6)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, labels, reduction="sum").item(), rel=1e-6)


def test_statistics_come_with_gradients_and_without(backend: str) -> None:
    hidden, weight, labels = _head(6, 16, 300)
    loss, found = linear_cross_entropy(hidden, weight, labels, statistics=True, softcap=2.0)
    trained = hidden.clone().requires_grad_()
    loss_again, found_again = linear_cross_entropy(trained, weight, labels, statistics=True, softcap=2.0)
    assert torch.equal(loss, loss_again.detach()) and not loss.requires_grad and loss_again.requires_grad
    assert found.correct == found_again.correct and torch.equal(found.entropy, found_again.entropy)
    assert not found_again.entropy.requires_grad


def test_only_wanted_gradients_are_made(backend: str) -> None:
    hidden, weight, labels = _head(5, 16, 100)
    everything = linear_cross_entropy_forward(hidden, weight, labels, wanted=Wanted(True, True, True))
    for name in ("hidden", "weight", "bias"):
        one = linear_cross_entropy_forward(hidden, weight, labels, wanted=Wanted(**{name: True}))
        made = [i for i, each in enumerate(one.gradients) if each is not None]
        assert made == [("hidden", "weight", "bias").index(name)]
        assert torch.equal(_made(one.gradients[made[0]]), _made(everything.gradients[made[0]]))
    none = linear_cross_entropy_forward(hidden, weight, labels)
    assert none.gradients == (None, None, None)
    assert torch.equal(none.losses_S, everything.losses_S)


def test_a_head_read_in_blocks_is_the_dense_one(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_head, "BLOCK_BYTES", 256 * 16 * 4)
    hidden, weight, labels = _head(7, 16, 700)
    head = _RowByRow(weight)
    results = []
    for each in (weight, head):
        x, bias = hidden.clone().requires_grad_(), _normal(700).fill_(0.1).requires_grad_()
        loss = linear_cross_entropy(x, each, labels, bias_V=bias, chunk=4, z_loss=0.01)
        results.append((loss.detach(), *torch.autograd.grad(loss, [x, bias])))
    assert head.asked == [(0, 256), (256, 512), (512, 700)] * 4  # two chunks, logits and gradient
    for dense, blocks in zip(*results, strict=True):
        assert relative_error(blocks, dense) < 1e-6


def test_chunks_change_nothing(backend: str) -> None:
    hidden, weight, labels = _head(11, 16, 257)
    labels[3] = -100
    whole = linear_cross_entropy_forward(hidden, weight, labels, wanted=Wanted(True, True))
    for chunk in (1, 4, 11, 100):
        parts = linear_cross_entropy_forward(hidden, weight, labels, wanted=Wanted(True, True), chunk=chunk)
        assert relative_error(parts.losses_S, whole.losses_S) < 1e-6
        for of_parts, of_whole in zip(parts.gradients[:2], whole.gradients[:2], strict=True):
            assert relative_error(_made(of_parts), _made(of_whole)) < 1e-6


def test_chunks_are_even_and_hold_no_more_than_they_may() -> None:
    for rows in (1, 100, 2048, 2049, 8192, 30_000):
        for vocabulary in (32_003, 128_256, 151_936):
            step = chunk_rows(rows, vocabulary, torch.bfloat16)
            assert step * vocabulary * 2 <= vocabulary_head.CHUNK_BYTES
            last = rows - (rows - 1) // step * step
            assert step <= rows and (last > step - 128 * (rows // step + 1))
    assert chunk_rows(10, 2**40, torch.float32) == 1
    with pytest.raises(ValueError, match="chunk"):
        chunk_rows(10, 10, torch.float32, 0)


@pytest.mark.parametrize("vocabulary", [32_003, 151_937])
def test_rows_of_any_vocabulary_are_aligned_in_the_buffer(vocabulary: int) -> None:
    hidden, weight = _normal(3, 8, dtype=torch.float16), _normal(vocabulary, 8, dtype=torch.float16)
    for _, logits in logit_chunks(hidden, weight, None, chunk=2):
        assert logits.shape[1] == vocabulary and logits.stride(0) * 2 % 128 == 0


def test_a_label_far_ahead_keeps_its_digits(backend: str) -> None:
    """lse - z of the label would lose three digits to logits around 1,000."""
    logits = torch.full((1, 100), 1000.0, device=DEVICE)
    logits[0, 5] = 1010.0
    labels = torch.tensor([5], device=DEVICE)
    found = linear_cross_entropy_forward(
        torch.ones(1, 1, device=DEVICE), logits.T, labels, wanted=Wanted(weight=True)
    )
    exact = F.cross_entropy(logits.double(), labels)
    assert found.losses_S.double().item() == pytest.approx(exact.item(), rel=1e-4)
    probability = logits.double().softmax(1)
    assert relative_error(_made(found.gradients.weight_VD)[:5, 0], probability[0, :5]) < 1e-4


def test_extreme_logits_stay_finite(backend: str) -> None:
    logits = torch.tensor([[-3e4, 3e4, 0.0], [-3e4, -3e4, -3e4], [6e4, 6e4, 6e4]], device=DEVICE)
    labels = torch.tensor([0, 1, 2], device=DEVICE)
    for options in (LossOptions(), LossOptions(LogitMap(softcap=30.0), label_smoothing=0.1, z_loss=1e-4)):
        found = linear_cross_entropy_forward(
            torch.eye(3, device=DEVICE),
            logits.T,
            labels,
            options=options,
            wanted=Wanted(True, True, True, True),
        )
        for each in (*found[:4], *found.gradients):
            assert each is not None and torch.isfinite(each.float()).all()
    plain = linear_cross_entropy_forward(torch.eye(3, device=DEVICE), logits.T, labels)
    assert plain.losses_S[0] == 6e4


def test_a_label_outside_the_vocabulary_is_told() -> None:
    hidden, weight, _ = _head(3, 16, 40)
    for label in (40, -1, 2**31 + 3):
        labels = torch.tensor([1, label, 2], device=DEVICE)
        with forced("triton"):
            losses = linear_cross_entropy_forward(hidden, weight, labels, wanted=Wanted(True)).losses_S
        assert losses.isnan().tolist() == [False, True, False]
        if not ON_GPU:
            with forced("reference"), pytest.raises(RuntimeError, match="out of bounds"):
                linear_cross_entropy(hidden, weight, labels)


def test_gradients_are_multiplied_in_fp32_and_may_be_asked_for_twice(backend: str) -> None:
    hidden, weight, labels = _head(4, 16, 60)
    hidden = hidden.bfloat16().requires_grad_()
    loss = linear_cross_entropy(hidden, weight.bfloat16(), labels)
    (whole,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    third = torch.tensor(1 / 3, device=DEVICE)
    for _ in range(2):
        (part,) = torch.autograd.grad(loss, hidden, third, retain_graph=True)
        assert torch.equal(part, (whole.float() * third).bfloat16())
    assert not torch.equal(whole * third.bfloat16(), part)
    assert torch.equal(scaled(whole[:, 0], third), part[:, 0])


def test_a_wider_weight_gets_its_gradient_in_its_own_type(backend: str) -> None:
    hidden, weight, labels = _head(9, 32, 200)
    weight.requires_grad_()
    (gradient,) = torch.autograd.grad(
        linear_cross_entropy(hidden.bfloat16(), weight, labels, chunk=2), weight
    )
    (exact,) = torch.autograd.grad(reference(hidden.double(), weight.double(), labels), weight)
    assert gradient.dtype == torch.float32
    assert relative_error(gradient, exact) < 1e-2


def test_small_probabilities_survive_fp16(backend: str) -> None:
    """At V = 151,936 a probability is near fp16's subnormal numbers, where two digits are left."""
    hidden, weight, labels = _head(2, 4, 151_936)
    hidden, weight = hidden.half(), (weight * 0.1).half()
    found = linear_cross_entropy_forward(hidden, weight, labels, wanted=Wanted(weight=True))
    exact_weight = weight.double().requires_grad_()
    (exact,) = torch.autograd.grad(reference(hidden.double(), exact_weight, labels), exact_weight)
    others = torch.ones(151_936, dtype=torch.bool, device=DEVICE)
    others[labels] = False
    assert relative_error(_made(found.gradients.weight_VD)[others], exact[others]) < 7e-4


def test_rows_beyond_two_to_the_31_elements() -> None:
    rows, vocabulary, stride = 3, 100, 2**30 + 64
    wide = torch.empty((rows - 1) * stride + 128, dtype=torch.float16, device=DEVICE)
    far = wide.as_strided((rows, vocabulary), (stride, 1))
    near = _normal(rows, 128, dtype=torch.float16)[:, :vocabulary]
    far.copy_(near)
    labels = torch.tensor([3, 99, 50], device=DEVICE)
    losses = []
    for products in (near, far):
        found = _room(near, near.new_empty(vocabulary, vocabulary), Wanted())
        with forced("triton"):
            _loss_rows(products, labels, LossOptions(), True, found)
        losses.append(found.losses_S)
    assert torch.equal(*losses) and torch.equal(near, far)
    assert losses[0].min() > 0 and near[0, 3] < 0


def test_options_out_of_range_are_refused() -> None:
    hidden, weight, labels = _head(2, 8, 20)
    with pytest.raises(ValueError, match="softcap"):
        linear_cross_entropy(hidden, weight, labels, softcap=0.0)
    with pytest.raises(ValueError, match="label_smoothing"):
        linear_cross_entropy(hidden, weight, labels, label_smoothing=1.5)


@pytest.mark.skipif(not ON_GPU, reason="CUDA graphs need a GPU")
def test_a_cuda_graph_captures_both_passes() -> None:
    hidden, weight, labels = _head(300, 64, 1003)
    weight, hidden = weight.bfloat16(), hidden.bfloat16()

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        x = hidden.detach().requires_grad_()
        loss = linear_cross_entropy(x, weight, labels, chunk=100)
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    expected = step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured[0], expected[0]) and torch.equal(captured[1], expected[1])
