"""In-batch contrastive loss over unit embeddings, without a batch × candidates matrix that lives on.

With â and ĉ the normalised anchors and candidates, s the scale (the inverse temperature) and y the index of
an anchor's positive, the loss is InfoNCE (van den Oord et al., 2018, arXiv:1807.03748):

    loss_b = - s â_b·ĉ_y + log Σ_c exp(s â_b·ĉ_c)

Symmetric, the mean with the same in the other direction is taken: each anchor's positive has to find its
anchor among all anchors (Radford et al., 2021, arXiv:2103.00020). The candidates play the part of a head, so
this is :mod:`whet.kernels.linear_cross_entropy` with a gradient for both sides, in fp32; its matrix products
follow ``torch.backends.cuda.matmul``'s choice of TF32. All gradients of the similarities are finished in the
forward pass; the backward pass takes them through the normalisation, one launch for anchors and one for
candidates.

For batches that do not fit at once, call it on detached embeddings that require gradients and continue from
their ``grad`` (Gao et al., 2021, arXiv:2101.06983).

Legend: B anchors, C candidates, E embedding width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .l2_normalize import l2_normalize_backward, l2_normalize_forward
from .linear_cross_entropy import LossOptions, linear_cross_entropy_forward
from .rows import accumulation_type
from .softmax_triton import cross_entropy_rows
from .spec import Case, Compilation, Inputs, KernelSpec, bytes_of
from .vocabulary_head import LogitMap, Wanted, scaled
from .vocabulary_head_cases import LOSS_SIGNATURE

CHUNK_BYTES = 64 * 2**20  # of similarities held at once


def contrastive_forward(
    anchors_BE: torch.Tensor,
    candidates_CE: torch.Tensor,
    labels_B: torch.Tensor | None,
    scale: float,
    symmetric: bool,
    wanted: Wanted,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Mean loss of unit embeddings and the ``wanted`` gradients of it: anchors' as ``hidden``, candidates' as
    ``weight``."""
    batch = anchors_BE.shape[0]
    options = LossOptions(LogitMap(scale=scale))
    order_B = torch.arange(batch, device=anchors_BE.device)
    labels = order_B if labels_B is None else labels_B.long()
    found = linear_cross_entropy_forward(
        anchors_BE, candidates_CE, labels, options=options, wanted=wanted, chunk=_rows(candidates_CE)
    )
    losses_B, (of_anchors_BE, of_candidates_CE, _) = found.losses_S, found.gradients
    if symmetric:
        positives_BE = candidates_CE[:batch] if labels_B is None else candidates_CE[labels]
        swapped = Wanted(hidden=wanted.weight, weight=wanted.hidden)
        back = linear_cross_entropy_forward(
            positives_BE, anchors_BE, order_B, options=options, wanted=swapped, chunk=_rows(anchors_BE)
        )
        losses_B = losses_B + back.losses_S
        of_positives_BE, of_all_anchors_BE, _ = back.gradients
        if of_anchors_BE is not None and of_all_anchors_BE is not None:
            of_anchors_BE += of_all_anchors_BE
        if of_candidates_CE is not None and of_positives_BE is not None:
            if labels_B is None:
                of_candidates_CE[:batch] += of_positives_BE
            else:  # unlike index_add_, this sums in a fixed order
                of_candidates_CE.index_put_((labels,), of_positives_BE, accumulate=True)
    return losses_B.sum() * _share(batch, symmetric), of_anchors_BE, of_candidates_CE


def _rows(columns_CE: torch.Tensor) -> int:
    return max(1, CHUNK_BYTES // (max(1, columns_CE.shape[0]) * columns_CE.element_size()))


def _share(batch: int, symmetric: bool) -> float:
    """Of one row's loss in the mean."""
    return 1 / (max(1, batch) * (2 if symmetric else 1))


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchors_BE: torch.Tensor,
        candidates_CE: torch.Tensor,
        labels_B: torch.Tensor | None,
        scale: float,
        symmetric: bool,
        normalize: bool,
    ) -> torch.Tensor:
        sides = (anchors_BE, candidates_CE)
        units = [l2_normalize_forward(x) if normalize else (_wide(x), None) for x in sides]
        wanted = Wanted(*ctx.needs_input_grad[:2])
        loss, *gradients = contrastive_forward(units[0][0], units[1][0], labels_B, scale, symmetric, wanted)
        ctx.save_for_backward(*sides, units[0][1], units[1][1], *gradients)
        ctx.share = _share(anchors_BE.shape[0], symmetric)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        anchors_BE, candidates_CE, *inverses, of_anchors_BE, of_candidates_CE = ctx.saved_tensors
        factor = of_loss * ctx.share
        sides = ((anchors_BE, inverses[0], of_anchors_BE), (candidates_CE, inverses[1], of_candidates_CE))
        return (*(_side_gradient(*side, factor) for side in sides), None, None, None, None)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.detach().to(accumulation_type(x.dtype))


def _side_gradient(
    x: torch.Tensor, inverse: torch.Tensor | None, gradient: torch.Tensor | None, factor: torch.Tensor
) -> torch.Tensor | None:
    if gradient is None:
        return None
    if inverse is None:
        return scaled(gradient, factor).to(x.dtype)
    return l2_normalize_backward(gradient, x, inverse, factor)


def contrastive_loss(
    anchors_BE: torch.Tensor,
    candidates_CE: torch.Tensor,
    *,
    scale: float = 20.0,
    labels_B: torch.Tensor | None = None,
    symmetric: bool = False,
    normalize: bool = True,
) -> torch.Tensor:
    """The mean InfoNCE loss, fp32 (float64 for float64), 0-d; differentiable in both; 0 for no anchors.

    Args:
        anchors_BE: embeddings, any float type, rows of any stride.
        candidates_CE: of the same type; positives and negatives.
        scale: factor of the similarities, 1 / temperature.
        labels_B: each anchor's positive in [0, C); None for candidate b of anchor b.
        symmetric: the mean of both directions.
        normalize: cosine similarity; without it the embeddings are taken as they are.

    Raises:
        ValueError: if widths or types differ, or if without labels there are fewer candidates than anchors.
    """
    batch, width = anchors_BE.shape
    if candidates_CE.shape[1] != width or candidates_CE.dtype != anchors_BE.dtype:
        raise ValueError(
            f"anchors are {tuple(anchors_BE.shape)} {anchors_BE.dtype}, "
            f"candidates {tuple(candidates_CE.shape)} {candidates_CE.dtype}; width and type must agree"
        )
    if labels_B is None and candidates_CE.shape[0] < batch:
        raise ValueError(f"{batch} anchors but {candidates_CE.shape[0]} candidates, and no labels_B")
    return _Contrastive.apply(anchors_BE, candidates_CE, labels_B, scale, symmetric, normalize)


def reference(
    anchors_BE: torch.Tensor,
    candidates_CE: torch.Tensor,
    *,
    scale: float = 20.0,
    labels_B: torch.Tensor | None = None,
    symmetric: bool = False,
    normalize: bool = True,
) -> torch.Tensor:
    """The same from the full matrix of similarities, in fp32 or float64."""
    wide = accumulation_type(anchors_BE.dtype)
    a_BE, c_CE = anchors_BE.to(wide), candidates_CE.to(wide)
    if normalize:
        a_BE, c_CE = F.normalize(a_BE, dim=1), F.normalize(c_CE, dim=1)
    order_B = torch.arange(len(a_BE), device=a_BE.device)
    labels = order_B if labels_B is None else labels_B.long()
    logits_BC = scale * a_BE @ c_CE.T
    loss = F.cross_entropy(logits_BC, labels, reduction="sum")
    if symmetric:
        loss = loss + F.cross_entropy(logits_BC[:, labels].T, order_B, reduction="sum")
    return loss * _share(len(a_BE), symmetric)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Embeddings of unit variance, each anchor's positive somewhat near it; rows of a wider buffer."""
    batch, candidates, width = (case.sizes[name] for name in ("batch", "candidates", "width"))
    generator = torch.Generator(device).manual_seed(seed)
    anchors_BE = torch.randn(batch, width + 8, generator=generator, device=device)
    candidates_CE = torch.randn(candidates, width + 8, generator=generator, device=device)
    options = {name: case.sizes[name] for name in ("scale", "symmetric", "normalize") if name in case.sizes}
    if case.sizes.get("labels"):
        options["labels_B"] = torch.randint(candidates, (batch,), generator=generator, device=device)
    nearest = min(batch, candidates)
    candidates_CE[:nearest] += 0.3 * anchors_BE[:nearest]
    return {
        "anchors_BE": anchors_BE.to(dtype)[:, :width],
        "candidates_CE": candidates_CE.to(dtype)[:, :width],
        **options,
    }


def _flops(inputs: Inputs) -> int:
    """Of the products made in the forward pass, the gradients' and the way back's among them."""
    anchors_BE, candidates_CE = inputs["anchors_BE"], inputs["candidates_CE"]
    products = 1 + sum(each.requires_grad for each in (anchors_BE, candidates_CE)) * torch.is_grad_enabled()
    columns = candidates_CE.shape[0] + (anchors_BE.shape[0] if inputs.get("symmetric") else 0)
    return int(2 * anchors_BE.numel() * columns * products)


def _case(name: str, batch: int, candidates: int, width: int, **options: Any) -> Case:
    return Case(name, {"batch": batch, "candidates": candidates, "width": width, **options})


SPEC = KernelSpec(
    name="contrastive_loss",
    operation=contrastive_loss,
    reference=reference,
    inputs=_inputs,
    cases=(
        _case("even", 16, 16, 64),
        _case("odd", 7, 15, 33, scale=5.0),
        _case("symmetric", 9, 20, 48, symmetric=True),
        _case("labels", 9, 5, 48, symmetric=True, labels=True),
        _case("not_normalized", 6, 9, 16, scale=0.5, normalize=False),
        _case("empty", 0, 4, 16),
    ),
    timed=(
        _case("minilm", 1024, 2048, 384),
        _case("bge_m3", 8192, 16384, 1024, symmetric=True),
    ),
    tolerance={torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4},
    traffic=lambda inputs: bytes_of(inputs["anchors_BE"], inputs["candidates_CE"]),
    flops=_flops,
    differentiable=("anchors_BE", "candidates_CE"),
    compilations=(
        Compilation(
            cross_entropy_rows,
            LOSS_SIGNATURE | {"products": "*fp32"},
            {
                **dict.fromkeys(("CAPPED", "SMOOTHED", "STATISTICS"), False),
                **{"GRADIENT": True, "BLOCK": 2048, "GROUP": 4},
            },
        ),
    ),
    notes="Runs linear_cross_entropy's and l2_normalize's kernels.",
)
