"""In-batch contrastive loss over unit embeddings, without a batch × candidates matrix that lives on.

With â and ĉ the normalised anchors and candidates, s the scale (the inverse temperature) and y the index of
an anchor's positive, the loss is InfoNCE (van den Oord et al., 2018, arXiv:1807.03748):

    z_bc = s â_b·ĉ_c        loss_b = - z_by + log Σ_c exp(z_bc)

Symmetric, the mean with the same in the other direction is taken: each anchor's positive has to find its
anchor among all anchors (Radford et al., 2021, arXiv:2103.00020). That one's sums go down the columns of the
same z, so a tile of z is made once for both: it leaves a log Σ exp of each of its rows and columns, and a
second kernel combines those of all tiles, in a fixed order. For the gradients z is made once more, a chunk of
rows at a time, and with n_c the number of anchors whose positive is c

    dz_bc = exp(z_bc - row_b) + n_c exp(z_bc - column_c) - 2 [c = y_b]
    dâ = s dz ĉ        dĉ = s dz' â

They are finished in the forward pass; the backward pass takes them through the normalisation, one launch for
anchors and one for candidates.

The embeddings are multiplied as they are, 16-bit ones exactly, and lengths divide the products. Where there
are bf16 tensor cores, dz, and embeddings that are not in bf16, are each the sum of two bf16 matrices for
their product: good to 16 bits, and several times as fast as products of fp32 numbers.

For batches that do not fit at once, call it on detached embeddings that require gradients and continue from
their ``grad`` (Gao et al., 2021, arXiv:2101.06983).

Legend: B anchors, C candidates, E embedding width, N anchors of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch.autograd.function import once_differentiable

from .attention_choice import nvidia_capability
from .backend import interpreting, uses_triton
from .contrastive_triton import (
    GROUP,
    combined,
    compilations,
    inverse_lengths,
    similarity_gradient_kernel,
    similarity_sums_kernel,
    similarity_tile,
)
from .descriptors import ProductTile, describable, descriptor
from .l2_normalize import l2_normalize_backward
from .rows import accumulation_type, addressable
from .spec import Case, Inputs, KernelSpec, bytes_of
from .vocabulary_head import scaled

CHUNK_BYTES = 256 * 2**20  # of gradients held at once


@dataclass(frozen=True)
class _Similarities:
    """What z is made of: both sides, 1 / length of their rows, labels, factor, and whether columns count."""

    anchors_BE: torch.Tensor
    candidates_CE: torch.Tensor
    inverses_B: torch.Tensor
    inverses_C: torch.Tensor
    labels_B: torch.Tensor
    scale: float
    symmetric: bool

    @property
    def on_triton(self) -> bool:
        """Whether the kernels run."""
        return uses_triton(self.anchors_BE) and self.anchors_BE.dtype != torch.float64

    @property
    def terms(self) -> int:
        """bf16 matrices that dz is the sum of; 1: it stays one of fp32 or wider."""
        capability = nvidia_capability(self.anchors_BE.device)
        tensor_cores = interpreting() or (capability is not None and capability >= (8, 0))
        return 2 if self.on_triton and tensor_cores else 1

    def units(self) -> _Similarities:
        """The same z of unit embeddings, in fp32 or wider, whose lengths need not divide any more."""
        a_BE = self.anchors_BE * self.inverses_B[:, None]
        c_CE = self.candidates_CE * self.inverses_C[:, None]
        ones = (torch.ones_like(self.inverses_B), torch.ones_like(self.inverses_C))
        return _Similarities(a_BE, c_CE, *ones, self.labels_B, self.scale, self.symmetric)

    def plain(self, rows: slice) -> torch.Tensor:
        """z of some rows of unit embeddings in plain torch."""
        return (self.scale * self.anchors_BE[rows]) @ self.candidates_CE.T

    def operands(self) -> tuple[Any, Any, ProductTile, dict[str, Any]]:
        """Both sides as the kernels over tiles of z take them, the tile, and what these are compiled with."""
        a, c, capability = self.anchors_BE, self.candidates_CE, nvidia_capability(self.anchors_BE.device)
        described = describable(a, c)
        tile = similarity_tile(len(a), len(c), a.dtype, capability, described)
        parted = a.dtype == torch.float32 and capability is not None and capability >= (8, 0)
        constants = {
            "GROUP": GROUP, "TILE_M": tile.rows, "TILE_N": tile.columns, "TILE_E": tile.depth,
            "EVEN": a.shape[1] % tile.depth == 0, "DESCRIBED": described, "SYMMETRIC": self.symmetric,
            "PRECISION": "tf32x3" if parted else "ieee", "CAST": interpreting(),
            "num_warps": tile.warps, "num_stages": tile.stages,
        }  # fmt: skip
        if not described:
            return a, c, tile, constants
        return descriptor(a, tile.rows, tile.depth), descriptor(c, tile.columns, tile.depth), tile, constants


class _Sums(NamedTuple):
    """log Σ exp of z's rows, and of its columns if symmetric; z of every anchor's positive, NaN for a label
    that is no candidate; z itself where plain torch made all of it at once."""

    rows_B: torch.Tensor
    columns_C: torch.Tensor
    positives_B: torch.Tensor
    z_BC: torch.Tensor | None = None


def _sums(of: _Similarities) -> _Sums:
    if not of.on_triton or not len(of.anchors_BE):
        return _sums_plain(of)
    batch, candidates = len(of.anchors_BE), len(of.candidates_CE)
    a, c, tile, constants = of.operands()
    down, across = triton.cdiv(batch, tile.rows), triton.cdiv(candidates, tile.columns)
    empty = of.inverses_B.new_empty
    row_parts, column_parts = empty(across, batch), empty(down, candidates if of.symmetric else 0)
    positives_B = of.inverses_B.new_full((batch,), torch.nan)
    similarity_sums_kernel[(down * across,)](
        a, c, of.inverses_B, of.inverses_C, of.labels_B, row_parts, column_parts, positives_B, of.scale,
        batch, candidates, of.anchors_BE.shape[1], of.anchors_BE.stride(0), of.candidates_CE.stride(0),
        **constants,
    )  # fmt: skip
    return _Sums(combined(row_parts), combined(column_parts), positives_B)


def _sums_plain(of: _Similarities) -> _Sums:
    none = z_NC = of.inverses_B.new_empty(0)
    rows, columns, positives = [none], [torch.full_like(of.inverses_C, -torch.inf)], [none]
    for part in _chunks(of):
        z_NC = of.plain(part)
        rows.append(z_NC.logsumexp(1))
        if of.symmetric:
            columns.append(z_NC.logsumexp(0))
        positives.append(z_NC.gather(1, of.labels_B[part, None])[:, 0])
    whole = z_NC if len(z_NC) == len(of.anchors_BE) else None
    return _Sums(torch.cat(rows), torch.stack(columns).logsumexp(0), torch.cat(positives), whole)


def _gradient(of: _Similarities, sums: _Sums, rows: slice) -> torch.Tensor:
    """dz of some rows, divided by the lengths of both sides' rows: (terms, N, C), to be added up."""
    if not of.on_triton:
        z_NC = of.plain(rows) if sums.z_BC is None else sums.z_BC
        dz_NC = (z_NC - sums.rows_B[rows, None]).exp_()
        if of.symmetric:
            dz_NC += z_NC.sub_(sums.columns_C).exp_()
        share = torch.full_like(dz_NC[:, :1], -2.0 if of.symmetric else -1.0)
        return dz_NC.scatter_add_(1, of.labels_B[rows, None], share)[None]
    a, c, tile, constants = of.operands()
    count, candidates = rows.stop - rows.start, len(of.candidates_CE)
    kind = torch.float32 if of.terms == 1 else torch.bfloat16
    room = triton.cdiv(candidates, 8) * 8  # rows begin at multiples of 16 bytes
    dz_MNC = torch.empty(of.terms, count, room, dtype=kind, device=of.anchors_BE.device)[..., :candidates]
    grid = (triton.cdiv(count, tile.rows) * triton.cdiv(candidates, tile.columns),)
    similarity_gradient_kernel[grid](
        a, c, of.inverses_B, of.inverses_C, of.labels_B, sums.rows_B, sums.columns_C, dz_MNC, of.scale,
        2.0 if of.symmetric else 1.0, rows.start, rows.stop, candidates, of.anchors_BE.shape[1],
        of.anchors_BE.stride(0), of.candidates_CE.stride(0), room, count * room,
        TERMS=of.terms, **constants,
    )  # fmt: skip
    return dz_MNC


def _split(x: torch.Tensor, terms: int, wide: torch.dtype) -> list[torch.Tensor]:
    """Matrices whose sum is x: bf16 ones, or for one term x itself, of the ``wide`` type."""
    if terms == 1:
        return [x.to(wide)]
    found, rest = [], x
    for _ in range(1 if x.dtype == torch.bfloat16 else terms):
        found.append(rest.to(torch.bfloat16))
        rest = rest - found[-1]
    return found


def _add_product(sum_: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """sum_ += left right, added up in the sum's type."""
    if left.dtype == sum_.dtype:
        sum_.addmm_(left, right)
    elif sum_.is_cuda:
        torch.addmm(sum_, left, right, out_dtype=sum_.dtype, out=sum_)
    else:
        sum_.addmm_(left.to(sum_.dtype), right.to(sum_.dtype))


def _gradients(of: _Similarities, sums: _Sums, wanted: tuple[bool, bool]) -> list[torch.Tensor | None]:
    """Of the sum of all losses in the unit embeddings."""
    sides, inverses = (of.anchors_BE, of.candidates_CE), (of.inverses_B, of.inverses_C)
    wide = of.inverses_B.dtype
    found = [
        torch.zeros_like(x, dtype=wide) if asked else None for x, asked in zip(sides, wanted, strict=True)
    ]
    if of.symmetric:
        counts_C = torch.zeros_like(sums.columns_C)
        counts_C.scatter_add_(0, of.labels_B, torch.ones_like(sums.positives_B))
        sums = sums._replace(columns_C=sums.columns_C - counts_C.log())
    of_anchors, of_candidates = found
    anchors, candidates = (_split(x, of.terms, wide) for x in sides)
    for rows in _chunks(of):
        dz_MNC = _gradient(of, sums, rows)
        for first, dz_NC in enumerate(dz_MNC):
            # Of the products of parts, the one below the last part is left out.
            for other in range(min(of.terms - first, len(candidates))):
                if of_anchors is not None:
                    _add_product(of_anchors[rows], dz_NC, candidates[other])
                if of_candidates is not None:
                    _add_product(of_candidates, dz_NC.T, anchors[other][rows])
    for gradient, inverse in zip(found, inverses, strict=True):
        if gradient is not None:  # divided by its rows' lengths until here; zero where that is by none
            gradient.mul_((of.scale / inverse.clamp(min=1e-30))[:, None])
    return found


def _chunks(of: _Similarities) -> Iterator[slice]:
    batch = len(of.anchors_BE)
    row_bytes = len(of.candidates_CE) * (of.inverses_B.itemsize if of.terms == 1 else 2 * of.terms)
    step = max(1, CHUNK_BYTES // max(1, row_bytes))
    step = step // 128 * 128 if step > 128 else step
    for first in range(0, batch, step):
        yield slice(first, min(first + step, batch))


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
        sides = [addressable(x.detach()) for x in (anchors_BE, candidates_CE)]
        inverses_B, inverses_C = (inverse_lengths(x, normalize) for x in sides)
        batch = len(anchors_BE)
        labels = torch.arange(batch, device=anchors_BE.device) if labels_B is None else labels_B.long()
        of = _Similarities(sides[0], sides[1], inverses_B, inverses_C, labels.contiguous(), scale, symmetric)
        of = of if of.on_triton else of.units()
        sums = _sums(of)
        losses_B = sums.rows_B - sums.positives_B
        if symmetric:
            losses_B += sums.columns_C[labels] - sums.positives_B
        gradients: list[torch.Tensor | None] = [None, None]
        if any(ctx.needs_input_grad[:2]):
            gradients = _gradients(of, sums, ctx.needs_input_grad[:2])
        ctx.save_for_backward(*sides, inverses_B, inverses_C, *gradients)
        ctx.share, ctx.normalize = _share(batch, symmetric), normalize
        return losses_B.sum() * ctx.share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *sides, inverses_B, inverses_C, of_anchors_BE, of_candidates_CE = ctx.saved_tensors
        factor = of_loss * ctx.share
        of_sides = ((sides[0], inverses_B, of_anchors_BE), (sides[1], inverses_C, of_candidates_CE))
        found = (_side_gradient(*side, factor, ctx.normalize) for side in of_sides)
        return (*found, None, None, None, None)


def _side_gradient(
    x: torch.Tensor, inverse: torch.Tensor, dy: torch.Tensor | None, factor: torch.Tensor, normalize: bool
) -> torch.Tensor | None:
    if dy is None:
        return None
    return l2_normalize_backward(dy, x, inverse, factor) if normalize else scaled(dy, factor).to(x.dtype)


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
        labels_B: each anchor's positive in [0, C), without which there is no loss (NaN on a GPU); None for
            candidate b of anchor b.
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
    """Of the products that are needed, one for both directions, and those of the gradients, which the forward
    pass makes."""
    anchors_BE, candidates_CE = inputs["anchors_BE"], inputs["candidates_CE"]
    products = 1 + sum(each.requires_grad for each in (anchors_BE, candidates_CE)) * torch.is_grad_enabled()
    return int(2 * anchors_BE.numel() * candidates_CE.shape[0] * products)


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
    compilations=compilations(),
    notes="The way back through the normalisation is l2_normalize's kernel.",
)
