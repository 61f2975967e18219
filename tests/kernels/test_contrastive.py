"""What the parity check cannot say of the contrastive loss: what it keeps, cached batches, bad input."""

from __future__ import annotations

import pytest
import torch

from whet.kernels import contrastive
from whet.kernels.backend import forced, interpreting
from whet.kernels.contrastive import contrastive_loss, reference
from whet.kernels.descriptors import describable
from whet.kernels.l2_normalize import l2_normalize
from whet.kernels.spec import relative_error

ON_GPU = torch.cuda.is_available() and not interpreting()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _embeddings(batch: int, candidates: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.randn(batch, width, device=DEVICE, requires_grad=True),
        torch.randn(candidates, width, device=DEVICE, requires_grad=True),
    )


def test_no_similarities_are_kept(backend: str) -> None:
    anchors, candidates = _embeddings(40, 60, 8)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        contrastive_loss(anchors, candidates, symmetric=True)
    assert kept and max(kept) == candidates.numel() < 40 * 60


@pytest.mark.parametrize("symmetric", [False, True])
def test_chunks_change_nothing(backend: str, symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    anchors, candidates = _embeddings(10, 17, 8)
    results = []
    for held in (contrastive.CHUNK_BYTES, 3 * 17 * 4):
        monkeypatch.setattr(contrastive, "CHUNK_BYTES", held)
        loss = contrastive_loss(anchors, candidates, symmetric=symmetric)
        results.append((loss.detach(), *torch.autograd.grad(loss, [anchors, candidates])))
    for whole, parts in zip(*results, strict=True):
        assert relative_error(parts, whole) < 1e-6


@pytest.mark.skipif(not interpreting(), reason="the kernels alone")
def test_where_rows_begin_changes_nothing() -> None:
    """Rows that a copy engine can address, and rows that it can not; tiles that go on behind the last one."""
    anchors, candidates = (each.detach() for each in _embeddings(70, 140, 24))
    results = []
    for wider in (24, 25):
        sides = [torch.zeros(len(x), wider)[:, :24].copy_(x).requires_grad_() for x in (anchors, candidates)]
        with forced("triton"):
            loss = contrastive_loss(*sides, symmetric=True)
        results.append((loss.detach(), *torch.autograd.grad(loss, sides)))
    assert describable(torch.zeros(2, 24)) and not describable(torch.zeros(2, 25)[:, :24])
    for first, second in zip(*results, strict=True):
        assert relative_error(second, first) < 1e-6


@pytest.mark.skipif(not interpreting(), reason="no other processor has a copy engine")
def test_rows_that_share_memory_are_not_described() -> None:
    assert not describable(torch.zeros(1, 24).expand(4, 24))
    assert not describable(torch.zeros(0, 24)) and not describable(torch.zeros(4, 0))


def test_expanded_embeddings(backend: str) -> None:
    """The same anchor for every candidate, its rows all in one place."""
    anchors, candidates = _embeddings(1, 6, 24)
    results = []
    for operation in (contrastive_loss, reference):
        loss = operation(anchors.expand(6, 24), candidates)
        results.append((loss.detach(), *torch.autograd.grad(loss, [anchors, candidates])))
    for ours, expected in zip(*results, strict=True):
        assert relative_error(ours, expected) < 1e-5


@pytest.mark.skipif(not interpreting(), reason="plain torch refuses such labels")
@pytest.mark.parametrize("label", [-100, 9, 10_000])
def test_a_label_that_is_no_candidate_is_seen(label: int) -> None:
    """Behind the last candidate too, where the last tile goes on."""
    anchors, candidates = (each.detach() for each in _embeddings(4, 9, 8))
    with forced("triton"):
        loss = contrastive_loss(anchors, candidates, labels_B=torch.tensor([0, 8, label, 1]))
    assert loss.isnan()


def test_only_one_side_may_train(backend: str) -> None:
    anchors, candidates = _embeddings(6, 9, 8)
    both = torch.autograd.grad(contrastive_loss(anchors, candidates, symmetric=True), [anchors, candidates])
    (first,) = torch.autograd.grad(contrastive_loss(anchors, candidates.detach(), symmetric=True), anchors)
    (second,) = torch.autograd.grad(
        contrastive_loss(anchors.detach(), candidates, symmetric=True), candidates
    )
    assert torch.equal(first, both[0]) and torch.equal(second, both[1])
    with torch.no_grad():
        assert not contrastive_loss(anchors, candidates).requires_grad


def test_a_batch_larger_than_memory_goes_on_from_the_embeddings_gradients(backend: str) -> None:
    """The loss on detached embeddings, then the encoder chunk by chunk, is the loss on all at once."""
    encoder = torch.nn.Linear(5, 8, device=DEVICE)
    x, y = torch.randn(12, 5, device=DEVICE), torch.randn(12, 5, device=DEVICE)
    whole = torch.autograd.grad(contrastive_loss(encoder(x), encoder(y)), encoder.weight)[0]
    detached = [encoder(each).detach().requires_grad_() for each in (x, y)]
    contrastive_loss(*detached).backward()
    for inputs, outputs in zip((x, y), detached, strict=True):
        for part in (slice(0, 5), slice(5, 12)):
            encoder(inputs[part]).backward(outputs.grad[part])
    assert encoder.weight.grad is not None
    assert relative_error(encoder.weight.grad, whole) < 1e-5


def test_an_embedding_without_direction_is_similar_to_nothing(backend: str) -> None:
    anchors, candidates = (each.detach().half() for each in _embeddings(4, 4, 8))
    anchors[1] = 0
    candidates[2] = 0
    anchors.requires_grad_(), candidates.requires_grad_()
    loss = contrastive_loss(anchors, candidates, symmetric=True)
    of_anchors, of_candidates = torch.autograd.grad(loss, [anchors, candidates])
    assert loss.item() == pytest.approx(reference(anchors, candidates, symmetric=True).item(), rel=1e-5)
    assert of_anchors.isfinite().all() and not of_anchors[1].any() and of_anchors[0].any()
    assert of_candidates.isfinite().all() and not of_candidates[2].any()
    assert torch.equal(l2_normalize(anchors)[1], torch.zeros(8, device=DEVICE))


def test_what_does_not_fit_together_is_refused() -> None:
    anchors, candidates = _embeddings(4, 3, 8)
    with pytest.raises(ValueError, match="4 anchors but 3 candidates"):
        contrastive_loss(anchors, candidates)
    with pytest.raises(ValueError, match="width and type"):
        contrastive_loss(anchors, candidates[:, :7])
    with pytest.raises(ValueError, match="width and type"):
        contrastive_loss(anchors, candidates.half())
