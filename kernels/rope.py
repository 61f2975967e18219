"""Rotary position embedding of packed queries and keys, with their optional RMS norm in the same pass.

Component i of a head and component i + W/2 turn together by the angle of the token's position, W being the
rotary width (Su et al. 2021, arXiv:2104.09864; in the "rotate half" order that transformers uses):

    y[i]       = x[i] cos - x[i + W/2] sin
    y[i + W/2] = x[i + W/2] cos + x[i] sin

Components from W on pass through. With weights for queries and keys each head z is normalised first, as in
Qwen3 and Gemma 3 (whose ``offset`` is 1):

    x = n (offset + weight),  n = z r,  r = 1 / sqrt(mean(z^2) + eps)

A rotation's transpose is the rotation by the opposite angle, so backward is forward with -sin; through the
norm it is

    dz = r (g - n mean(g n)) with g = dx (offset + weight),  dweight = sum of dx n

where r and n are computed again from z. Weight gradients are summed a group of tokens at a time and then over
the groups, in one fixed order. A program takes a token with all its heads, so cos and sin are read once;
memory bounds the time.

Legend: T tokens, C = H + 2G heads (queries, keys, then values), E head size, P positions, W rotary width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from .backend import uses_triton
from .rope_cases import CASES, TIMED, rope_backward_traffic, rope_inputs, rope_traffic
from .rope_triton import COMPILATIONS, constants, norm_backward_kernel, rotate_kernel, warps
from .rows import accumulation_type
from .spec import KernelSpec

_GROUPS = 2048  # most partial sums of the weights' gradients

Gradients = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries (T, H, E), keys and values (T, G, E), each with strides of its own."""


class _Rotation(NamedTuple):
    """The arguments that forward and backward share."""

    cos: torch.Tensor
    sin: torch.Tensor
    positions: torch.Tensor
    heads: int
    kv_heads: int
    q_weight: torch.Tensor | None
    k_weight: torch.Tensor | None
    eps: float
    offset: float

    def check(self, x: torch.Tensor) -> None:
        """Raises ValueError where ``x`` and the arguments do not fit together."""
        total, width = self.heads + 2 * self.kv_heads, self.cos.shape[1]
        if x.dim() != 3 or x.shape[1] != total:
            raise ValueError(
                f"{tuple(x.shape)} does not hold {self.heads} query, {self.kv_heads} key and {self.kv_heads} "
                f"value heads; needed is (tokens, {total}, head size)"
            )
        if width % 2 or not 0 < width <= x.shape[2]:
            raise ValueError(f"rotary width {width} has to be even and at most the head size, {x.shape[2]}")
        if (
            self.cos.shape != self.sin.shape
            or self.cos.stride() != self.sin.stride()
            or self.cos.stride(1) != 1
        ):
            raise ValueError("cos and sin have to be two tables of one shape, their rows contiguous")
        if self.positions.shape != x.shape[:1]:
            raise ValueError(f"{tuple(self.positions.shape)} positions for {x.shape[0]} tokens")
        if (self.q_weight is None) != (self.k_weight is None):
            raise ValueError("queries and keys are normalised together: give both weights, or none")

    def angles(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin (T, 1, W/2) of each token."""
        half = self.cos.shape[1] // 2
        cos, sin = (table[self.positions, None, :half].to(dtype) for table in (self.cos, self.sin))
        return cos, sin

    def launch(self, size: int, in_place: bool) -> dict[str, int]:
        """Constants; in place, values stay as they are, and without a norm also what passes through."""
        half, rotated = self.cos.shape[1] // 2, self.heads + self.kv_heads
        rest = 0 if in_place and self.q_weight is None else size - 2 * half
        return constants(
            self.heads, rotated, rotated if in_place else rotated + self.kv_heads, size, half, rest
        )

    def pointers(self) -> tuple[torch.Tensor | None, ...]:
        weights = (
            None if weight is None else weight.contiguous() for weight in (self.q_weight, self.k_weight)
        )
        return self.cos, self.sin, self.positions.contiguous(), *weights


def reference(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    heads: int,
    kv_heads: int,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
) -> torch.Tensor:
    """What :func:`rope` computes, in plain torch: float32 inside for 16-bit types, float64 for float64."""
    rotation = _Rotation(cos, sin, positions, heads, kv_heads, q_weight, k_weight, eps, offset)
    rotation.check(qkv)
    x = qkv.to(accumulation_type(qkv.dtype))
    q, k, v = x.split((heads, kv_heads, kv_heads), dim=1)
    if q_weight is not None and k_weight is not None:
        q = q * _root(q, eps) * (offset + q_weight.to(x.dtype))
        k = k * _root(k, eps) * (offset + k_weight.to(x.dtype))
    cos_T1W, sin_T1W = rotation.angles(x.dtype)
    return torch.cat((_turned(q, cos_T1W, sin_T1W), _turned(k, cos_T1W, sin_T1W), v), dim=1).to(qkv.dtype)


def rope_forward(
    qkv_TCE: torch.Tensor,
    cos_PE: torch.Tensor,
    sin_PE: torch.Tensor,
    positions_T: torch.Tensor,
    heads: int,
    kv_heads: int,
    *,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
    out_TCE: torch.Tensor | None = None,
) -> torch.Tensor:
    """Queries and keys of a packed projection, normalised where weights are given, and turned.

    Args:
        qkv_TCE: ``heads`` query, ``kv_heads`` key and ``kv_heads`` value heads a token; any token stride.
        cos_PE: float32 table (P, W), scaled, its two halves equal, as transformers makes it.
        sin_PE: likewise.
        positions_T: row of the tables for each token, int32 or int64.
        heads: query heads H.
        kv_heads: key heads G.
        q_weight: weight (E,) of the queries' norm; both weights or none.
        k_weight: weight (E,) of the keys' norm.
        eps: added to the mean square.
        offset: added to the norms' weights.
        out_TCE: where the result goes. Values are copied there; in place (``out_TCE is qkv_TCE``) they stay
            untouched, as does what passes through where there is no norm.

    Raises:
        ValueError: if heads and widths do not fit together, or only one weight is given.
    """
    rotation = _Rotation(cos_PE, sin_PE, positions_T, heads, kv_heads, q_weight, k_weight, eps, offset)
    return _forward(qkv_TCE, rotation, out_TCE)


def rope_backward(
    gradient_TCE: torch.Tensor | Heads,
    qkv_TCE: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions_T: torch.Tensor,
    heads: int,
    kv_heads: int,
    *,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
    weight_gradient: bool = False,
    out_TCE: torch.Tensor | None = None,
) -> Gradients:
    """Gradients of ``qkv`` (over ``gradient_TCE`` unless ``out_TCE`` is given) and of the two weights.

    Args:
        gradient_TCE: gradient of the forward result, for queries, keys and values together or apart; apart,
            ``out_TCE`` has to be given, and may be what they are views of.
        qkv_TCE: the forward input, before the norm; read only where there are weights, its values never.
        weight_gradient: whether the weights' gradients are wanted (float32; the same number in every run).
        out_TCE: where the gradient of ``qkv`` goes.

    The other arguments are :func:`rope_forward`'s.

    Raises:
        ValueError: if heads and widths do not fit together, or with weights but no ``qkv_TCE``.
    """
    rotation = _Rotation(cos, sin, positions_T, heads, kv_heads, q_weight, k_weight, eps, offset)
    if isinstance(gradient_TCE, torch.Tensor):
        out = gradient_TCE if out_TCE is None else out_TCE
        gradients = _apart(gradient_TCE, rotation)
    elif out_TCE is None:
        raise ValueError("gradients that come apart need out_TCE")
    else:
        out, gradients = out_TCE, gradient_TCE
    return _backward(gradients, qkv_TCE, rotation, weight_gradient, out)


def rope(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    heads: int,
    kv_heads: int,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
) -> torch.Tensor:
    """:func:`rope_forward` into a new tensor, differentiable in ``qkv`` and the weights.

    Raises:
        ValueError: if heads and widths do not fit together, or only one weight is given.
    """
    out: torch.Tensor = _Rope.apply(
        qkv, cos, sin, positions, heads, kv_heads, q_weight, k_weight, eps, offset
    )
    return out


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: torch.Tensor, *arguments: Any) -> torch.Tensor:
        rotation = _Rotation(*arguments)
        kept = None if rotation.q_weight is None else qkv
        ctx.save_for_backward(kept, *(item for item in rotation if not isinstance(item, int | float)))
        ctx.numbers = (rotation.heads, rotation.kv_heads, rotation.eps, rotation.offset)
        return _forward(qkv, rotation, None)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        qkv, cos, sin, positions, q_weight, k_weight = ctx.saved_tensors
        heads, kv_heads, eps, offset = ctx.numbers
        rotation = _Rotation(cos, sin, positions, heads, kv_heads, q_weight, k_weight, eps, offset)
        wanted = any(ctx.needs_input_grad[6:8])
        out = torch.empty(gradient.shape, dtype=gradient.dtype, device=gradient.device)
        dqkv, dq, dk = _backward(_apart(gradient, rotation), qkv, rotation, wanted, out)
        dq, dk = (None if d is None else d.to(w.dtype) for d, w in ((dq, q_weight), (dk, k_weight)))
        return dqkv, None, None, None, None, None, dq, dk, None, None


def _forward(x: torch.Tensor, rotation: _Rotation, out: torch.Tensor | None) -> torch.Tensor:
    rotation.check(x)
    out = _output(out, x)
    if not uses_triton(x) or not x.numel():
        return out.copy_(reference(x, *rotation))
    return _rotate(_apart(x, rotation), out, rotation, transposed=False)


def _apart(x: torch.Tensor, rotation: _Rotation) -> Heads:
    q, k, v = x.split((rotation.heads, rotation.kv_heads, rotation.kv_heads), dim=1)
    return q, k, v


def _same_memory(heads: Heads, out: torch.Tensor) -> bool:
    """Whether the heads are views of ``out``, in its order."""
    return heads[0].data_ptr() == out.data_ptr() and heads[0].stride(0) == out.stride(0)


def _strides(heads: Heads) -> tuple[int, ...]:
    return tuple(stride for x in heads for stride in x.stride()[:2])


def _backward(
    gradients: Heads,
    qkv: torch.Tensor | None,
    rotation: _Rotation,
    weight_gradient: bool,
    out: torch.Tensor,
) -> Gradients:
    rotation.check(out)
    if rotation.q_weight is not None and qkv is None:
        raise ValueError("the gradient of a normalised head needs qkv_TCE, the forward input")
    if out.stride(2) != 1:
        raise ValueError(f"out has strides {out.stride()}; needed is a unit stride along the head")
    if not uses_triton(out) or not out.numel():
        dqkv, *dweights = _reference_backward(gradients, qkv, out, rotation)
        return dqkv, *(dweights if weight_gradient else (None, None))
    if rotation.q_weight is None or qkv is None:
        return _rotate(gradients, out, rotation, transposed=True), None, None
    return _norm_backward(gradients, qkv, out, rotation, weight_gradient)


def _rotate(heads: Heads, out: torch.Tensor, rotation: _Rotation, transposed: bool) -> torch.Tensor:
    launch = rotation.launch(out.shape[2], in_place=_same_memory(heads, out))
    q, k, v = (_addressable(x) for x in heads)
    rotate_kernel[(out.shape[0],)](
        q, k, v, out, *rotation.pointers(), *_strides((q, k, v)), out.stride(0), out.stride(1),
        rotation.cos.stride(0), rotation.eps, rotation.offset,
        **launch, TRANSPOSED=transposed, num_warps=warps(launch),
    )  # fmt: skip
    return out


def _norm_backward(
    gradients: Heads, qkv: torch.Tensor, out: torch.Tensor, rotation: _Rotation, weight_gradient: bool
) -> Gradients:
    tokens, _, size = out.shape
    launch = rotation.launch(size, in_place=_same_memory(gradients, out))
    q, k, v = (_addressable(x) for x in gradients)
    x = _addressable(qkv)
    steps = triton.cdiv(tokens, _GROUPS) if weight_gradient else 1
    groups = triton.cdiv(tokens, steps)
    partial = x.new_empty((groups, 2, size), dtype=torch.float32) if weight_gradient else None
    norm_backward_kernel[(groups,)](
        q, k, v, x, out, *rotation.pointers(), partial, tokens, steps,
        *_strides((q, k, v)), x.stride(0), x.stride(1), out.stride(0), out.stride(1),
        rotation.cos.stride(0), rotation.eps, rotation.offset, **launch, num_warps=warps(launch),
    )  # fmt: skip
    if partial is None:
        return out, None, None
    dq_weight, dk_weight = partial.sum(0)
    return out, dq_weight, dk_weight


def _reference_backward(
    gradients: Heads, qkv: torch.Tensor | None, out: torch.Tensor, rotation: _Rotation
) -> Gradients:
    wide = accumulation_type(out.dtype)
    cos, sin = rotation.angles(wide)
    sizes = (rotation.heads, rotation.kv_heads, rotation.kv_heads)
    dq, dk, dv = (gradient.to(wide) for gradient in gradients)
    dq, dk = _turned(dq, cos, -sin), _turned(dk, cos, -sin)
    dq_weight, dk_weight = None, None
    if qkv is not None and rotation.q_weight is not None and rotation.k_weight is not None:
        q, k, _ = qkv.to(wide).split(sizes, dim=1)
        dq, dq_weight = _norm_gradients(dq, q, rotation.q_weight, rotation.eps, rotation.offset)
        dk, dk_weight = _norm_gradients(dk, k, rotation.k_weight, rotation.eps, rotation.offset)
    return out.copy_(torch.cat((dq, dk, dv), dim=1)), dq_weight, dk_weight


def _norm_gradients(
    dx: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, eps: float, offset: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of z (T, heads, E) and of the weight from that of n (offset + weight)."""
    scale = _root(z, eps)
    n = z * scale
    g = dx * (offset + weight.to(z.dtype))
    return scale * (g - n * (g * n).mean(-1, keepdim=True)), (dx * n).sum((0, 1))


def _root(z: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.rsqrt(z.square().mean(-1, keepdim=True) + eps)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def _output(out: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """``out`` after a check, or a fresh tensor; raises ValueError."""
    if out is None:
        return torch.empty(like.shape, dtype=like.dtype, device=like.device)
    if out.shape != like.shape or out.stride(2) != 1:
        raise ValueError(
            f"out has shape {tuple(out.shape)} and strides {out.stride()}; "
            f"needed is {tuple(like.shape)} with unit stride along the head"
        )
    return out


def _addressable(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


SPEC = KernelSpec(
    name="rope",
    operation=rope,
    reference=reference,
    inputs=rope_inputs,
    cases=CASES,
    timed=TIMED,
    tolerance={torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 6e-4},
    traffic=rope_traffic,
    backward_traffic=rope_backward_traffic,
    differentiable=("qkv", "q_weight", "k_weight"),
    frozen=("q_weight", "k_weight"),
    compilations=COMPILATIONS,
)
