"""Rotary position embedding of packed queries and keys, with their optional RMS norm per head in the same pass.

Component i of a head and component i + W/2 turn together by the angle of the token's position (Su et al. 2021,
arXiv:2104.09864, in the "rotate half" order that transformers uses), W being the rotary width:

    y[i]       = x[i] cos - x[i + W/2] sin
    y[i + W/2] = x[i + W/2] cos + x[i] sin

Components from W on pass through. With ``q_weight`` and ``k_weight`` each head z is normalised first, as in Qwen3
and Gemma 3 (whose ``offset`` is 1):

    x = n (offset + weight),  n = z r,  r = 1 / sqrt(mean(z^2) + eps)

A rotation's transpose is the rotation by the opposite angle, so backward is forward with -sin, and through the norm

    dz = r (g - n mean(g n)) with g = dx (offset + weight),  dweight = sum of dx n

where r and n are computed again from z. Weight gradients are summed a group of tokens at a time and then over the
groups, in one fixed order. A program takes a token with all its heads, so cos and sin are read once; memory bounds
the time.

Legend: T tokens, C = H + 2G heads (queries, keys, values in this order), E head size, P positions, W rotary width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from .backend import uses_triton
from .rope_triton import norm_backward_kernel, rotate_kernel
from .rows import accumulation_type
from .spec import Case, Compilation, Inputs, KernelSpec, bytes_of

_GROUPS = 2048  # most partial sums of the weights' gradients
_Tables = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # cos, sin, positions
_Weights = tuple[torch.Tensor | None, torch.Tensor | None]  # of the queries' and the keys' norm


class _Launch(NamedTuple):
    """Constants of a launch. ``rest`` and ``written`` leave out what an in-place pass without a norm keeps."""

    heads: int
    rotated: int
    written: int
    size: int
    half: int
    rest: int

    def constants(self) -> dict[str, int]:
        block_half, block_rest = triton.next_power_of_2(self.half), triton.next_power_of_2(max(self.rest, 1))
        return {
            "QUERIES": self.heads, "ROTATED": self.rotated, "WRITTEN": self.written,
            "SIZE": self.size, "HALF": self.half, "REST": self.rest,
            "BLOCK_HEADS": 8, "BLOCK_HALF": block_half, "BLOCK_REST": block_rest,
        }  # fmt: skip

    def warps(self) -> int:
        """8 elements a thread and half: one 16-byte access in 16-bit types."""
        return max(1, min(8, 8 * triton.next_power_of_2(self.half) // 256))


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
    tables = (cos, sin, positions)
    _check(qkv, tables, heads, kv_heads, (q_weight, k_weight))
    x = qkv.to(accumulation_type(qkv.dtype))
    q, k, v = x.split((heads, kv_heads, kv_heads), dim=1)
    if q_weight is not None and k_weight is not None:
        q = q * _root(q, eps) * (offset + q_weight.to(x.dtype))
        k = k * _root(k, eps) * (offset + k_weight.to(x.dtype))
    cos_T1W, sin_T1W = _angles(tables, x.dtype)
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
        cos_PE: table (positions, rotary width) in float32, scaled, its two halves equal, as transformers makes it.
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
    tables, weights = (cos_PE, sin_PE, positions_T), (q_weight, k_weight)
    _check(qkv_TCE, tables, heads, kv_heads, weights)
    out = (
        torch.empty(qkv_TCE.shape, dtype=qkv_TCE.dtype, device=qkv_TCE.device) if out_TCE is None else out_TCE
    )
    if not qkv_TCE.numel():
        return out
    if not uses_triton(qkv_TCE):
        return out.copy_(reference(qkv_TCE, *tables, heads, kv_heads, *weights, eps, offset))
    launch = _launch(qkv_TCE, out, cos_PE.shape[1], heads, kv_heads, q_weight is not None)
    return _rotate(qkv_TCE, out, tables, weights, eps, offset, launch, transposed=False)


def rope_backward(
    gradient_TCE: torch.Tensor,
    qkv_TCE: torch.Tensor | None,
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
    weight_gradient: bool = False,
    out_TCE: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(gradient of ``qkv``, of ``q_weight``, of ``k_weight``); the first over ``gradient_TCE`` unless ``out_TCE``.

    Args:
        gradient_TCE: gradient of the forward result, for queries, keys and values.
        qkv_TCE: the forward input, before the norm; read only where there are weights. Its values are not read.
        weight_gradient: whether the weights' gradients are wanted (float32; the same number in every run).
        out_TCE: where the gradient of ``qkv`` goes.

    The other arguments are :func:`rope_forward`'s.

    Raises:
        ValueError: if heads and widths do not fit together, or with weights but no ``qkv_TCE``.
    """
    tables, weights = (cos_PE, sin_PE, positions_T), (q_weight, k_weight)
    _check(gradient_TCE, tables, heads, kv_heads, weights)
    if q_weight is not None and qkv_TCE is None:
        raise ValueError("the gradient of a normalised head needs qkv_TCE, the forward input")
    out = gradient_TCE if out_TCE is None else out_TCE
    if not uses_triton(gradient_TCE) or not gradient_TCE.numel():
        dqkv, *dweights = _reference_backward(
            gradient_TCE, qkv_TCE, out, tables, weights, eps, offset, heads, kv_heads
        )
        return dqkv, *(dweights if weight_gradient else (None, None))
    launch = _launch(gradient_TCE, out, cos_PE.shape[1], heads, kv_heads, q_weight is not None)
    if q_weight is None or qkv_TCE is None:
        return _rotate(gradient_TCE, out, tables, weights, eps, offset, launch, transposed=True), None, None
    return _norm_backward(gradient_TCE, qkv_TCE, out, tables, weights, eps, offset, launch, weight_gradient)


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
    def forward(
        ctx: Any,
        qkv: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        positions: torch.Tensor,
        heads: int,
        kv_heads: int,
        q_weight: torch.Tensor | None,
        k_weight: torch.Tensor | None,
        eps: float,
        offset: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(None if q_weight is None else qkv, cos, sin, positions, q_weight, k_weight)
        ctx.sizes, ctx.numbers = (heads, kv_heads), (eps, offset)
        return rope_forward(
            qkv, cos, sin, positions, heads, kv_heads,
            q_weight=q_weight, k_weight=k_weight, eps=eps, offset=offset,
        )  # fmt: skip

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        qkv, cos, sin, positions, q_weight, k_weight = ctx.saved_tensors
        eps, offset = ctx.numbers
        wanted = ctx.needs_input_grad[6] or ctx.needs_input_grad[7]
        dqkv, dq, dk = rope_backward(
            gradient, qkv, cos, sin, positions, *ctx.sizes, q_weight=q_weight, k_weight=k_weight,
            eps=eps, offset=offset, weight_gradient=wanted, out_TCE=torch.empty_like(gradient),
        )  # fmt: skip
        dweights = (
            None if dq is None else dq.to(q_weight.dtype),
            None if dk is None else dk.to(k_weight.dtype),
        )
        return dqkv, None, None, None, None, None, *dweights, None, None


def _rotate(
    x: torch.Tensor,
    out: torch.Tensor,
    tables: _Tables,
    weights: _Weights,
    eps: float,
    offset: float,
    launch: _Launch,
    transposed: bool,
) -> torch.Tensor:
    x, (cos, sin, positions) = _addressable(x), tables
    rotate_kernel[(x.shape[0],)](
        x, out, cos, sin, positions, *_contiguous(weights),
        x.stride(0), x.stride(1), out.stride(0), out.stride(1), cos.stride(0), eps, offset,
        **launch.constants(), TRANSPOSED=transposed, num_warps=launch.warps(),
    )  # fmt: skip
    return out


def _norm_backward(
    gradient: torch.Tensor,
    qkv: torch.Tensor,
    out: torch.Tensor,
    tables: _Tables,
    weights: _Weights,
    eps: float,
    offset: float,
    launch: _Launch,
    weight_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    gradient, x, (cos, sin, positions) = _addressable(gradient), _addressable(qkv), tables
    tokens, _, size = x.shape
    steps = triton.cdiv(tokens, _GROUPS) if weight_gradient else 1
    groups = triton.cdiv(tokens, steps)
    partial = x.new_empty((groups, 2, size), dtype=torch.float32) if weight_gradient else None
    norm_backward_kernel[(groups,)](
        gradient, x, out, cos, sin, positions, *_contiguous(weights), partial, tokens, steps,
        gradient.stride(0), gradient.stride(1), x.stride(0), x.stride(1), out.stride(0), out.stride(1),
        cos.stride(0), eps, offset, **launch.constants(), num_warps=launch.warps(),
    )  # fmt: skip
    return (out, None, None) if partial is None else (out, *partial.sum(0).unbind())


def _reference_backward(
    gradient: torch.Tensor,
    qkv: torch.Tensor | None,
    out: torch.Tensor,
    tables: _Tables,
    weights: _Weights,
    eps: float,
    offset: float,
    heads: int,
    kv_heads: int,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    wide = accumulation_type(gradient.dtype)
    cos, sin = _angles(tables, wide)
    sizes = (heads, kv_heads, kv_heads)
    dq, dk, dv = gradient.to(wide).split(sizes, dim=1)
    dq, dk = _turned(dq, cos, -sin), _turned(dk, cos, -sin)
    q_weight, k_weight = weights
    dq_weight, dk_weight = None, None
    if qkv is not None and q_weight is not None and k_weight is not None:
        q, k, _ = qkv.to(wide).split(sizes, dim=1)
        dq, dq_weight = _norm_gradients(dq, q, q_weight, eps, offset)
        dk, dk_weight = _norm_gradients(dk, k, k_weight, eps, offset)
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


def _angles(tables: _Tables, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (T, 1, W/2) of each token."""
    cos, sin, positions = tables
    half = cos.shape[1] // 2
    return cos[positions, None, :half].to(dtype), sin[positions, None, :half].to(dtype)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def _launch(x: torch.Tensor, out: torch.Tensor, width: int, heads: int, kv_heads: int, norm: bool) -> _Launch:
    """Raises ValueError where ``out`` cannot be written."""
    if out.shape != x.shape or out.stride(2) != 1:
        raise ValueError(
            f"out has shape {tuple(out.shape)} and strides {out.stride()}; "
            f"needed is {tuple(x.shape)} with unit stride along the head"
        )
    size, in_place = x.shape[2], out is x
    rest = 0 if in_place and not norm else size - width
    rotated = heads + kv_heads
    return _Launch(heads, rotated, rotated if in_place else rotated + kv_heads, size, width // 2, rest)


def _check(x: torch.Tensor, tables: _Tables, heads: int, kv_heads: int, weights: _Weights) -> None:
    cos, sin, positions = tables
    if x.dim() != 3 or x.shape[1] != heads + 2 * kv_heads:
        raise ValueError(
            f"{tuple(x.shape)} does not hold {heads} query, {kv_heads} key and {kv_heads} value heads: "
            f"needed is (tokens, {heads + 2 * kv_heads}, head size)"
        )
    if cos.shape[1] % 2 or not 0 < cos.shape[1] <= x.shape[2]:
        raise ValueError(
            f"rotary width {cos.shape[1]} has to be even and at most the head size, {x.shape[2]}"
        )
    if cos.shape != sin.shape or cos.stride() != sin.stride() or cos.stride(1) != 1:
        raise ValueError("cos and sin have to be two tables of one shape, rows contiguous")
    if positions.shape != x.shape[:1]:
        raise ValueError(f"{tuple(positions.shape)} positions for {x.shape[0]} tokens")
    if (weights[0] is None) != (weights[1] is None):
        raise ValueError("queries and keys are normalised together: give both weights, or none")


def _addressable(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _contiguous(weights: _Weights) -> list[torch.Tensor | None]:
    return [None if weight is None else weight.contiguous() for weight in weights]


def rotary_tables(
    positions: int, width: int, theta: float = 10000.0, *, device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain tables cos and sin (positions, width) in float32: angle = position / theta^(2 i / width)."""
    inverse = theta ** -(torch.arange(0, width, 2, device=device, dtype=torch.float64) / width)
    angles = torch.arange(positions, device=device, dtype=torch.float64)[:, None] * inverse
    both = torch.cat((angles, angles), dim=-1)
    return both.cos().float(), both.sin().float()


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Tokens of a wider buffer, positions of packed documents, and one weight pair where the case has a norm."""
    sizes = {"width": case.sizes["size"], "norm": False, "offset": 0.0, "padding": 0, **case.sizes}
    generator = torch.Generator(device).manual_seed(seed)
    tokens, heads, kv_heads, size = (int(sizes[name]) for name in ("tokens", "heads", "kv_heads", "size"))
    total = heads + 2 * kv_heads
    buffer = torch.randn(tokens, total * size + sizes["padding"], generator=generator, device=device).to(
        dtype
    )
    cos, sin = rotary_tables(max(tokens, 1), sizes["width"], device=device)
    inputs: Inputs = {
        "qkv": buffer[:, : total * size].unflatten(1, (total, size)),
        "cos": cos,
        "sin": sin,
        "positions": torch.arange(tokens, device=device) % max(tokens // 2, 1),
        "heads": heads,
        "kv_heads": kv_heads,
        "offset": sizes["offset"],
    }
    if sizes["norm"]:
        pair = torch.randn(2, size, generator=generator, device=device).mul_(0.3).add_(1 - sizes["offset"])
        inputs["q_weight"], inputs["k_weight"] = pair.to(dtype)
    return inputs


def _table_bytes(inputs: Inputs) -> int:
    """One row a token of half of each table, and its position."""
    tokens = len(inputs["positions"])
    return tokens * inputs["cos"].shape[1] * inputs["cos"].element_size() + bytes_of(inputs["positions"])


def _traffic(inputs: Inputs) -> int:
    return 2 * bytes_of(inputs["qkv"]) + _table_bytes(inputs)


def _backward_traffic(inputs: Inputs) -> int:
    reread = 0
    if "q_weight" in inputs:  # queries and keys before the norm
        reread = bytes_of(inputs["qkv"][:, : inputs["heads"] + inputs["kv_heads"]])
    return _traffic(inputs) + reread


_SMALL = {"tokens": 5, "heads": 4, "kv_heads": 2, "size": 32}
_LARGE = {"tokens": 8192, "heads": 32, "kv_heads": 8, "size": 128}
_SMALLER = {"tokens": 8192, "heads": 16, "kv_heads": 8, "size": 128, "norm": True}
_POINTERS = dict.fromkeys(("q_weight_ptr", "k_weight_ptr"), "*T")
_TABLES = {"cos_ptr": "*fp32", "sin_ptr": "*fp32", "positions_ptr": "*i64"}
_NUMBERS = {"table_row": "i32", "eps": "fp32", "offset": "fp32"}


def _compilations() -> tuple[Compilation, ...]:
    """Plain and partial, with and without norm, with and without the weights' gradients."""
    found = []
    for launch in (_Launch(32, 40, 48, 128, 64, 0), _Launch(16, 18, 20, 256, 32, 192)):
        constants = launch.constants()
        kinds = dict.fromkeys(constants, "constexpr")
        strides = dict.fromkeys(("x_token", "x_head", "out_token", "out_head"), "i32")
        common = {"x_ptr": "*T", "out_ptr": "*T", **_TABLES}
        for norm in (False, True):
            weights = _POINTERS if norm else dict.fromkeys(_POINTERS, "constexpr")
            signature = {**common, **weights, **strides, **_NUMBERS, **kinds, "TRANSPOSED": "constexpr"}
            values = {**constants, "TRANSPOSED": not norm, **({} if norm else dict.fromkeys(_POINTERS))}
            found.append(Compilation(rotate_kernel, signature, values, launch.warps()))
        for partial in ("*fp32", "constexpr"):
            signature = {
                "gradient_ptr": "*T", **common, **_POINTERS, "partial_ptr": partial,
                **dict.fromkeys(("tokens", "steps", "gradient_token", "gradient_head"), "i32"),
                **strides, **_NUMBERS, **kinds,
            }  # fmt: skip
            values = constants if partial == "*fp32" else {**constants, "partial_ptr": None}
            found.append(Compilation(norm_backward_kernel, signature, values, launch.warps()))
    return tuple(found)


SPEC = KernelSpec(
    name="rope",
    operation=rope,
    reference=reference,
    inputs=_inputs,
    cases=(
        Case("plain", _SMALL),
        Case("norm", {**_SMALL, "norm": True}),
        Case("norm offset strided", {**_SMALL, "norm": True, "offset": 1.0, "padding": 16}),
        Case("partial", {**_SMALL, "width": 12}),
        Case("partial norm", {"tokens": 3, "heads": 9, "kv_heads": 1, "size": 40, "width": 24, "norm": True}),
        Case("odd", {"tokens": 7, "heads": 11, "kv_heads": 1, "size": 48, "padding": 5}),
        Case("empty", {**_SMALL, "tokens": 0, "norm": True}),
    ),
    timed=(
        Case("8b", _LARGE),
        Case("0.6b", _SMALLER),
        Case("8b norm", {**_LARGE, "norm": True}),
        Case("gemma", {"tokens": 8192, "heads": 8, "kv_heads": 4, "size": 256, "norm": True, "offset": 1.0}),
    ),
    tolerance={torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 6e-4},
    traffic=_traffic,
    backward_traffic=_backward_traffic,
    differentiable=("qkv", "q_weight", "k_weight"),
    compilations=_compilations(),
)
