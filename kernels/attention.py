"""Variable-length attention over packed documents: dispatch to the back ends, and the autograd function.

Documents stand one after another in a row of T tokens and never see each other. `attention_choice` picks the
back end; each is a file of its own with the same two functions, ``forward`` and ``backward``.

Legend: T tokens, H query heads, G key/value heads, E head size, N documents.
"""

from __future__ import annotations

from typing import Any

import torch

from . import (
    attention_cpu,
    attention_cudnn,
    attention_efficient,
    attention_flash,
    attention_reference,
    attention_triton,
)
from .attention_choice import (
    AttentionSizes,
    Choice,
    choose_attention,
    choose_without_kernels,
    nvidia_capability,
)
from .attention_reference import AttentionOptions
from .backend import uses_triton
from .spec import Case, Inputs, KernelSpec, bytes_of, relative_error

__all__ = [
    "SPEC",
    "AttentionOptions",
    "AttentionSizes",
    "attention",
    "attention_backward",
    "attention_forward",
    "choose_attention",
    "reference",
    "resolve",
]

BACKENDS: dict[str, Any] = {
    "cudnn": attention_cudnn,
    "flash": attention_flash,
    "efficient": attention_efficient,
    "triton": attention_triton,
    "cpu": attention_cpu,
    "reference": attention_reference,
}
LIBRARIES = ("cudnn", "flash", "efficient", "cpu")
"""Back ends whose backward pass was only ever checked with an output that lies without gaps."""
CHECKED = ("cudnn", "efficient")
"""Back ends that rest on internal operators: held against the reference before use."""

CHECK_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Largest relative error of an output or gradient in a self check."""
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

_verdicts: dict[tuple[Any, ...], str] = {}


def self_check(name: str, device: torch.device, options: AttentionOptions, sizes: AttentionSizes) -> str:
    """What is wrong with a back end on this GPU; empty if nothing is.

    Forward and backward are held against the reference on some 500 tokens, once a process for each dtype,
    head layout and mask. It synchronises, so it never runs while a CUDA graph is captured: an unchecked back
    end is passed over there.
    """
    key = (name, device, options, sizes.dtype, sizes.heads // sizes.kv_heads, sizes.head_size)
    if key not in _verdicts:
        if torch.cuda.is_current_stream_capturing():
            return "not checked before the graph's capture"
        _verdicts[key] = _check(name, device, options, sizes)
    return _verdicts[key]


def _check(name: str, device: torch.device, options: AttentionOptions, sizes: AttentionSizes) -> str:
    lengths = (256, 256) if name == "cudnn" else (290, 1, 130, 0, 0)
    members, size = sizes.heads // sizes.kv_heads, sizes.head_size
    generator = torch.Generator(device).manual_seed(0)
    qkv = torch.randn(sum(lengths), 2 * members + 4, size, generator=generator, device=device).to(sizes.dtype)
    q, k, v = qkv.split((2 * members, 2, 2), dim=1)
    do = torch.randn(q.shape, generator=generator, device=device).to(sizes.dtype)
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=device)
    outputs = []
    for module, dtype in ((BACKENDS[name], sizes.dtype), (attention_reference, torch.float32)):
        inputs = (q.to(dtype), k.to(dtype), v.to(dtype))
        try:
            o, lse, extra = module.forward(*inputs, offsets, max(lengths), options)
            gradients = module.backward(do.to(dtype), *inputs, o, lse, extra, offsets, max(lengths), options)
            torch.cuda.synchronize(device)
        except RuntimeError as error:  # cuDNN's way of saying that it has no plan for these sizes
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
        outputs.append((o, lse, *gradients))
    errors = [relative_error(value, exact) for value, exact in zip(*outputs, strict=True)]
    right = max(errors) < CHECK_TOLERANCE[sizes.dtype]
    return "" if right else f"relative errors of o, lse, dq, dk, dv: {errors}"


def resolve(
    q_THE: torch.Tensor,
    kv_heads: int,
    documents: int,
    longest: int,
    options: AttentionOptions,
    backend: str | None = None,
) -> Choice:
    """The back end that serves these tensors, self checks included.

    Raises:
        ValueError: for a ``backend`` that is not one of :data:`BACKENDS`.
    """
    if not uses_triton(q_THE):
        return choose_without_kernels(q_THE.device, q_THE.dtype, longest, options)
    if backend is not None:
        if backend not in BACKENDS:
            raise ValueError(f"unknown attention back end {backend!r}; known are {', '.join(BACKENDS)}")
        return Choice(backend, "asked for")
    tokens, heads, head_size = q_THE.shape
    sizes = AttentionSizes(q_THE.dtype, heads, kv_heads, head_size, tokens, documents, longest)
    capability = nvidia_capability(q_THE.device)
    without: frozenset[str] = frozenset()
    while True:
        choice = choose_attention(capability, options, sizes, without)
        if choice.name not in CHECKED or not self_check(choice.name, q_THE.device, options, sizes):
            return choice
        without |= {choice.name}


def _unit_stride(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def attention_forward(
    q_THE: torch.Tensor,
    k_TGE: torch.Tensor,
    v_TGE: torch.Tensor,
    offsets_N1: torch.Tensor,
    longest: int,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    backend: str | None = None,
    documents: int | None = None,
    dropout: float = 0.0,
    seed: torch.Tensor | None = None,
    out_THE: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """softmax(scale q k^T) v inside each document, without a host synchronisation.

    Args:
        q_THE: queries; any token and head stride.
        k_TGE: keys; H is a multiple of G.
        v_TGE: values.
        offsets_N1: int32, where each document begins; the first is 0, the last T; repeated values are empty
            documents.
        longest: tokens of the longest document, or a bound on it.
        causal: see `AttentionOptions`, also for ``window``, ``softcap`` and ``scale``.
        backend: a name of :data:`BACKENDS`; None: `choose_attention`.
        documents: documents that are not empty; None: N. ``documents * longest == T`` says that all have the
            same length, which cuDNN's fastest layout needs.
        dropout: probability that a weight is dropped; the others are divided by 1 - dropout.
        seed: int32, one number on the device, that the dropped weights follow from.
        out_THE: written and returned.

    Returns:
        Output (T, H, E), log-sum-exp of the scores (H, T) fp32, and tensors that `attention_backward` needs.

    Raises:
        ValueError: for heads that do not divide, an unknown back end, or dropout without a seed.
    """
    options = AttentionOptions(causal, window, softcap, scale, dropout)
    q, k, v = _unit_stride(q_THE), _unit_stride(k_TGE), _unit_stride(v_TGE)
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads cannot share {k.shape[1]} key/value heads")
    documents = offsets_N1.numel() - 1 if documents is None else documents
    name = resolve(q, k.shape[1], documents, longest, options, backend).name if q.shape[0] else "reference"
    if dropout and seed is None:
        raise ValueError("dropout needs a seed")
    more = {"seed": seed} if dropout else {}  # which back ends that drop nothing do not take
    o_THE, lse_HT, extra = BACKENDS[name].forward(q, k, v, offsets_N1, longest, options, out_THE, **more)
    if out_THE is not None and o_THE is not out_THE:
        o_THE = out_THE.copy_(o_THE)
    return o_THE, lse_HT, extra


def attention_backward(
    do_THE: torch.Tensor,
    q_THE: torch.Tensor,
    k_TGE: torch.Tensor,
    v_TGE: torch.Tensor,
    o_THE: torch.Tensor,
    lse_HT: torch.Tensor,
    extra: tuple[torch.Tensor, ...],
    offsets_N1: torch.Tensor,
    longest: int,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    backend: str | None = None,
    documents: int | None = None,
    dropout: float = 0.0,
    dq: torch.Tensor | None = None,
    dk: torch.Tensor | None = None,
    dv: torch.Tensor | None = None,
    exact: bool = True,
) -> Gradients:
    """Gradients of q, k and v, given the forward pass's inputs, results and the same options.

    Args:
        do_THE: gradient of the output.
        dq: written and returned, with ``dk`` and ``dv``, e.g. three views of one (T, H + 2G, E) buffer; give
            all three or none.
        exact: copy results that a back end put elsewhere; False returns them where they are, which spares
            the copy if what follows reads them anyway.
    """
    options = AttentionOptions(causal, window, softcap, scale, dropout)
    q, k, v = _unit_stride(q_THE), _unit_stride(k_TGE), _unit_stride(v_TGE)
    documents = offsets_N1.numel() - 1 if documents is None else documents
    name = resolve(q, k.shape[1], documents, longest, options, backend).name if q.shape[0] else "reference"
    given = None if dq is None or dk is None or dv is None else (dq, dk, dv)
    if name in LIBRARIES:
        o_THE = o_THE.contiguous()
    results = BACKENDS[name].backward(
        _unit_stride(do_THE), q, k, v, o_THE, lse_HT, extra, offsets_N1, longest, options, given
    )
    if given is None or not exact:
        return results
    for target, result in zip(given, results, strict=True):
        if result is not target:
            target.copy_(result)
    return given


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        offsets: torch.Tensor,
        longest: int,
        settings: dict[str, Any],
    ) -> torch.Tensor:
        o, lse, extra = attention_forward(q, k, v, offsets, longest, **settings)
        ctx.save_for_backward(q, k, v, o, lse, offsets, *extra)
        ctx.longest, ctx.settings = longest, settings
        return o

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, o, lse, offsets, *extra = ctx.saved_tensors
        settings = {name: value for name, value in ctx.settings.items() if name != "seed"}  # is in extra
        dq, dk, dv = attention_backward(
            gradients[0], q, k, v, o, lse, tuple(extra), offsets, ctx.longest, **settings
        )
        return dq, dk, dv, None, None, None


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    longest: int,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    backend: str | None = None,
    documents: int | None = None,
    dropout: float = 0.0,
    seed: torch.Tensor | None = None,
) -> torch.Tensor:
    """`attention_forward`'s output (T, H, E), differentiable in q, k and v."""
    settings = {
        "causal": causal,
        "window": window,
        "softcap": softcap,
        "scale": scale,
        "backend": backend,
        "documents": documents,
        "dropout": dropout,
        "seed": seed,
    }
    return _Attention.apply(q, k, v, offsets, longest, settings)


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    longest: int,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    backend: str | None = None,
    documents: int | None = None,
    dropout: float = 0.0,
    seed: torch.Tensor | None = None,
) -> torch.Tensor:
    """`attention` in plain torch, for autograd to differentiate; ``backend`` and ``documents`` are unused."""
    options = AttentionOptions(causal, window, softcap, scale, dropout)
    return attention_reference.forward(q, k, v, offsets, longest, options, seed=seed)[0]


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    sizes = dict(case.sizes)
    lengths = sizes.pop("lengths")
    heads, kv_heads, head_size = (sizes.pop(name) for name in ("heads", "kv_heads", "head_size"))
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(sum(lengths), heads + 2 * kv_heads, head_size, generator=generator)
    q, k, v = qkv.to(device, dtype).split((heads, kv_heads, kv_heads), dim=1)
    offsets = torch.tensor((0, *lengths)).cumsum(0).to(device, torch.int32)
    if "dropout" in sizes:
        sizes["seed"] = torch.tensor([97531 + seed], dtype=torch.int32, device=device)
    return {"q": q, "k": k, "v": v, "offsets": offsets, "longest": max(lengths, default=0)} | sizes


def _traffic(inputs: Inputs) -> int:
    return bytes_of(inputs["q"], inputs["k"], inputs["v"], inputs["q"])


def _flops(inputs: Inputs) -> int:
    """Of the forward pass: two products of E columns for each visible pair of tokens and query head."""
    options = AttentionOptions(inputs.get("causal", True), inputs.get("window"))
    pairs = 0
    for length in inputs["offsets"].diff().tolist():
        back, ahead = options.reach(length)
        pairs += sum(min(i, back) + 1 + min(length - 1 - i, ahead) for i in range(length))
    return 4 * pairs * inputs["q"].shape[1] * inputs["q"].shape[2]


_SMALL = {"heads": 4, "kv_heads": 2, "head_size": 16, "backend": "triton"}
_8B = {"heads": 32, "kv_heads": 8, "head_size": 128}
_06B = {"heads": 16, "kv_heads": 8, "head_size": 128}

SPEC = KernelSpec(
    name="attention",
    operation=attention,
    reference=reference,
    inputs=_inputs,
    cases=(
        Case("odd", {**_SMALL, "lengths": (33, 1, 40, 0, 7)}),
        Case("bidirectional", {**_SMALL, "lengths": (5, 12, 0, 30, 3), "causal": False}),
        Case("window", {**_SMALL, "lengths": (70, 9), "window": 13}),
        Case("window_bidirectional", {**_SMALL, "lengths": (50, 9), "window": 6, "causal": False}),
        Case("softcap", {**_SMALL, "lengths": (21, 30), "softcap": 5.0, "scale": 0.7}),
        Case("head_80", {**_SMALL, "head_size": 80, "lengths": (19, 14), "heads": 3, "kv_heads": 3}),
        Case("dropout", {**_SMALL, "lengths": (37, 1, 50), "causal": False, "dropout": 0.2}),
        Case("empty", {**_SMALL, "lengths": ()}),
        Case("chosen", {"heads": 2, "kv_heads": 1, "head_size": 64, "lengths": (100, 40)}),
        Case("bound", {"heads": 2, "kv_heads": 1, "head_size": 64, "lengths": (100, 40), "longest": 1024}),
    ),
    timed=(
        Case("8b", {**_8B, "lengths": (2048,) * 4}),
        Case("0.6b", {**_06B, "lengths": (2048,) * 4}),
        Case("8b_mixed", {**_8B, "lengths": (4096, 2100, 1000, 400, 300, 200, 96)}),
    ),
    tolerance={torch.float32: 3e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3},
    traffic=_traffic,
    flops=_flops,
    backward_flops=lambda inputs: 5 * _flops(inputs) // 2,  # five products for the forward pass' two
    differentiable=("q", "k", "v"),
    compilations=attention_triton.COMPILATIONS,
    notes="backend in a case forces that back end; None goes through choose_attention",
)
