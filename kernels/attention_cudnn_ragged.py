"""cuDNN's fused attention over ragged documents, through NVIDIA's front end (``nvidia-cudnn-frontend``).

An optional package: where it is missing, packed documents of unequal length run FlashAttention-2 or Triton.
cuDNN sees N sequences of at most L tokens whose places in the packed buffers come from the offsets, times the
token stride of each buffer. A plan is built once for each set of sizes and strides (some 100 ms), so callers
keep the number of documents (repeat the last offset) and the longest document to few distinct values; L is
rounded up to a multiple of 256 here. The operations have no host synchronisation and may be captured.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from .attention_reference import AttentionOptions

LENGTH_STEP = 256
TOKEN_STEP = 64  # cuDNN's unit of max_total_seq_len
_Q, _K, _V, _O, _DO, _STATS, _DQ, _DK, _DV, _LENGTHS, _RAGGED = range(1, 12)
"""Tensor identities in a plan; a buffer's ragged offsets have its identity plus _RAGGED."""


@lru_cache(maxsize=1)
def installed() -> bool:
    """Whether NVIDIA's front end can be imported."""
    return importlib.util.find_spec("cudnn") is not None


@dataclass(frozen=True)
class _Shape:
    """What a plan depends on; strides are (head, token) of the buffers in the order of ``buffers``."""

    device: int
    dtype: torch.dtype
    documents: int
    longest: int
    tokens: int  # bound on all documents together, for the backward workspace; 0 in the forward pass
    heads: int
    kv_heads: int
    head_size: int
    options: AttentionOptions
    strides: tuple[tuple[int, int], ...]


@lru_cache(maxsize=8)
def _handle(device: int) -> Any:
    import cudnn

    with torch.cuda.device(device):
        return cudnn.create_handle()


class _Plan:
    """A cuDNN graph under construction: names its tensors by identity, adds ragged offsets and lengths."""

    def __init__(self, shape: _Shape, buffers: tuple[int, ...]) -> None:
        import cudnn

        self.cudnn, self.shape = cudnn, shape
        self.strides = dict(zip(buffers, shape.strides, strict=True))
        float16 = shape.dtype == torch.float16
        self.graph = cudnn.pygraph(
            io_data_type=cudnn.data_type.HALF if float16 else cudnn.data_type.BFLOAT16,
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            handle=_handle(shape.device),
        )
        index = {"stride": [1, 1, 1, 1], "data_type": cudnn.data_type.INT32}
        self.lengths = self.graph.tensor(
            dim=[shape.documents, 1, 1, 1], uid=_LENGTHS, name="lengths", **index
        )
        self.offsets = {
            buffer: self.graph.tensor(
                dim=[shape.documents + 1, 1, 1, 1], uid=buffer + _RAGGED, name=f"offsets{buffer}", **index
            )
            for buffer in buffers
        }

    def _layout(self, buffer: int) -> tuple[list[int], list[int]]:
        shape = self.shape
        heads = shape.kv_heads if buffer in (_K, _V, _DK, _DV) else shape.heads
        size = 1 if buffer == _STATS else shape.head_size
        head, token = self.strides[buffer]
        # The stride between documents is nominal: the ragged offsets say where each begins.
        return [shape.documents, heads, shape.longest, size], [shape.longest * token, head, token, 1]

    def input(self, buffer: int) -> Any:
        dim, stride = self._layout(buffer)
        extra = {"data_type": self.cudnn.data_type.FLOAT} if buffer == _STATS else {}
        return self.graph.tensor(
            dim=dim,
            stride=stride,
            ragged_offset=self.offsets[buffer],
            uid=buffer,
            name=f"buffer{buffer}",
            **extra,
        )

    def output(self, tensor: Any, buffer: int) -> None:
        dim, stride = self._layout(buffer)
        tensor.set_output(True).set_uid(buffer).set_dim(dim).set_stride(stride)
        tensor.set_ragged_offset(self.offsets[buffer])
        if buffer == _STATS:
            tensor.set_data_type(self.cudnn.data_type.FLOAT)

    def common(self) -> dict[str, Any]:
        options = self.shape.options
        back, ahead = options.reach(0)
        return {
            "attn_scale": options.factor(self.shape.head_size),
            "use_padding_mask": True,
            "seq_len_q": self.lengths,
            "seq_len_kv": self.lengths,
            "diagonal_alignment": self.cudnn.diagonal_alignment.TOP_LEFT,
            "diagonal_band_left_bound": None if options.window is None else back + 1,
            "diagonal_band_right_bound": None if options.window is None and not options.causal else ahead,
        }

    def build(self) -> tuple[Any, int]:
        self.graph.build([self.cudnn.heur_mode.A, self.cudnn.heur_mode.FALLBACK])
        return self.graph, self.graph.get_workspace_size()


@lru_cache(maxsize=256)
def _forward_plan(shape: _Shape) -> tuple[Any, int]:
    plan = _Plan(shape, (_Q, _K, _V, _O, _STATS))
    o, stats = plan.graph.sdpa(
        q=plan.input(_Q), k=plan.input(_K), v=plan.input(_V), generate_stats=True, **plan.common()
    )
    plan.output(o, _O)
    plan.output(stats, _STATS)
    return plan.build()


@lru_cache(maxsize=256)
def _backward_plan(shape: _Shape) -> tuple[Any, int]:
    buffers = (_Q, _K, _V, _O, _DO, _STATS, _DQ, _DK, _DV)
    plan = _Plan(shape, buffers)
    gradients = plan.graph.sdpa_backward(
        q=plan.input(_Q), k=plan.input(_K), v=plan.input(_V), o=plan.input(_O), dO=plan.input(_DO),
        stats=plan.input(_STATS), max_total_seq_len_q=shape.tokens, max_total_seq_len_kv=shape.tokens,
        **plan.common(),
    )  # fmt: skip
    for gradient, buffer in zip(gradients, (_DQ, _DK, _DV), strict=True):
        plan.output(gradient, buffer)
    return plan.build()


def _shape(
    q_THE: torch.Tensor,
    k_TGE: torch.Tensor,
    documents: int,
    longest: int,
    options: AttentionOptions,
    buffers: dict[int, torch.Tensor],
    tokens: int = 0,
) -> _Shape:
    _, heads, head_size = q_THE.shape
    return _Shape(
        device=q_THE.device.index,
        dtype=q_THE.dtype,
        documents=documents,
        longest=-(-longest // LENGTH_STEP) * LENGTH_STEP,
        tokens=tokens,
        heads=heads,
        kv_heads=k_TGE.shape[1],
        head_size=head_size,
        options=options,
        strides=tuple((buffer.stride(1), buffer.stride(0)) for buffer in buffers.values()),
    )


@lru_cache(maxsize=64)
def _token_strides(strides: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(strides, dtype=torch.int32, device=device)[:, None]


def _execute(plan: tuple[Any, int], buffers: dict[int, torch.Tensor], offsets_N1: torch.Tensor) -> None:
    import cudnn

    graph, workspace_bytes = plan
    device = offsets_N1.device
    places_BN1 = offsets_N1 * _token_strides(tuple(buffer.stride(0) for buffer in buffers.values()), device)
    pack = dict(buffers) | {_LENGTHS: offsets_N1.diff()}
    pack |= {buffer + _RAGGED: places_N1 for buffer, places_N1 in zip(buffers, places_BN1, strict=True)}
    workspace = torch.empty(max(workspace_bytes, 1), dtype=torch.uint8, device=device)
    handle = _handle(device.index)
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream(device).cuda_stream)
    graph.execute(pack, workspace, handle=handle)


def _aligned(x: torch.Tensor) -> bool:
    """Whether every head's row begins at a multiple of 16 bytes and is dense, as cuDNN wants it."""
    size = x.element_size()
    return x.stride(-1) == 1 and all(
        n * size % 16 == 0 for n in (x.storage_offset(), x.stride(0), x.stride(1))
    )


def _readable(x: torch.Tensor) -> torch.Tensor:
    return x if _aligned(x) else x.contiguous()


def _writable(x: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    if x is not None and _aligned(x):
        return x
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def forward(
    q_THE: torch.Tensor,
    k_TGE: torch.Tensor,
    v_TGE: torch.Tensor,
    offsets_N1: torch.Tensor,
    longest: int,
    options: AttentionOptions,
    out_THE: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """Output (T, H, E), log-sum-exp (H, T) (a transposed view), and nothing else."""
    q_THE, k_TGE, v_TGE = _readable(q_THE), _readable(k_TGE), _readable(v_TGE)
    tokens, heads, _ = q_THE.shape
    o_THE = _writable(out_THE, q_THE)
    lse_TH1 = torch.empty(tokens, heads, 1, dtype=torch.float32, device=q_THE.device)
    buffers = {_Q: q_THE, _K: k_TGE, _V: v_TGE, _O: o_THE, _STATS: lse_TH1}
    plan = _forward_plan(_shape(q_THE, k_TGE, offsets_N1.numel() - 1, longest, options, buffers))
    _execute(plan, buffers, offsets_N1)
    return o_THE, lse_TH1.squeeze(-1).mT, ()


def backward(
    do_THE: torch.Tensor,
    q_THE: torch.Tensor,
    k_TGE: torch.Tensor,
    v_TGE: torch.Tensor,
    o_THE: torch.Tensor,
    lse_HT: torch.Tensor,
    extra: tuple[torch.Tensor, ...],
    offsets_N1: torch.Tensor,
    longest: int,
    options: AttentionOptions,
    given: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v, written into ``given`` where cuDNN can."""
    q_THE, k_TGE, v_TGE = _readable(q_THE), _readable(k_TGE), _readable(v_TGE)
    do_THE, o_THE = _readable(do_THE), _readable(o_THE)
    targets = given or (None, None, None)
    dq, dk, dv = (_writable(*pair) for pair in zip(targets, (q_THE, k_TGE, v_TGE), strict=True))
    buffers = {
        _Q: q_THE,
        _K: k_TGE,
        _V: v_TGE,
        _O: o_THE,
        _DO: do_THE,
        _STATS: lse_HT.mT.contiguous().unsqueeze(-1),
    }
    buffers |= {_DQ: dq, _DK: dk, _DV: dv}
    tokens = -(-q_THE.shape[0] // TOKEN_STEP) * TOKEN_STEP
    plan = _backward_plan(_shape(q_THE, k_TGE, offsets_N1.numel() - 1, longest, options, buffers, tokens))
    _execute(plan, buffers, offsets_N1)
    return dq, dk, dv
