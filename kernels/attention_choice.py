"""Which back end of attention serves a request, and why: a table of refusals, fastest first.

FlexAttention is not in it: it measured 0.6 to 1.0 times FlashAttention-2 on packed documents, compiles for
seconds, and windows and softcaps are covered by the Triton kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch

from .attention_reference import AttentionOptions
from .backend import interpreting, only_references

HALVES = (torch.float16, torch.bfloat16)

Capability = tuple[int, int] | None
"""NVIDIA compute capability; None: another maker's GPU, or none."""


@dataclass(frozen=True)
class AttentionSizes:
    """What a choice depends on besides the options, all known on the host.

    Args:
        dtype: of q, k and v.
        heads: query heads.
        kv_heads: key/value heads.
        head_size: columns of a head.
        tokens: tokens of all documents.
        documents: documents that are not empty.
        longest: tokens of the longest document, or a bound on it.
    """

    dtype: torch.dtype
    heads: int
    kv_heads: int
    head_size: int
    tokens: int
    documents: int
    longest: int

    @property
    def equal(self) -> bool:
        """Whether all documents have the same length."""
        return self.documents * self.longest == self.tokens


class Choice(NamedTuple):
    """A back end and why it runs, and not one ahead of it."""

    name: str
    reason: str


Refuses = Callable[[Capability, AttentionSizes, AttentionOptions], str | None]


def _library_refuses(capability: Capability, sizes: AttentionSizes, options: AttentionOptions) -> str | None:
    """What cuDNN and FlashAttention-2 have in common."""
    if capability is None or capability < (8, 0):
        return "needs an NVIDIA GPU of compute capability 8.0"
    if sizes.dtype not in HALVES:
        return f"takes 16-bit inputs, not {sizes.dtype}"
    if options.softcap is not None:
        return "has no softcap"
    if options.dropout:
        return "drops no weights by a seed of ours"
    if sizes.head_size % 8 or sizes.head_size > 256:
        return f"takes head sizes in steps of 8 up to 256, not {sizes.head_size}"
    return None


def _cudnn_refuses(capability: Capability, sizes: AttentionSizes, options: AttentionOptions) -> str | None:
    if not sizes.equal:
        return "needs documents of equal length"
    if options.window is not None:
        return "has no window in torch's operator"
    if sizes.head_size > 128:
        return "has no backward pass for head sizes over 128 on every GPU"
    if sizes.longest < 64:
        return "wastes its tiles on documents under 64 tokens"
    return _library_refuses(capability, sizes, options)


def _flash_refuses(capability: Capability, sizes: AttentionSizes, options: AttentionOptions) -> str | None:
    if sizes.tokens < 64 * sizes.documents:
        return "wastes its tiles on documents under 64 tokens on average"
    if capability is not None and capability >= (9, 0) and sizes.head_size <= 128:
        return "is slower than the Triton kernel from compute capability 9.0 on"
    return _library_refuses(capability, sizes, options)


def _efficient_refuses(
    capability: Capability, sizes: AttentionSizes, options: AttentionOptions
) -> str | None:
    if capability is None:
        return "needs an NVIDIA GPU"
    if capability >= (8, 0) and sizes.dtype in HALVES:
        return "is for GPUs before compute capability 8.0 and for fp32"
    if sizes.dtype == torch.bfloat16:
        return "has no bf16 before compute capability 8.0"
    if options.softcap is not None:
        return "has no softcap"
    if options.dropout:
        return "drops no weights by a seed of ours"
    if options.window is not None and not options.causal:
        return "has no bidirectional window"
    if sizes.head_size % 8:
        return f"takes head sizes in steps of 8, not {sizes.head_size}"
    return None


def _cpu_refuses(dtype: torch.dtype, longest: int, options: AttentionOptions) -> str | None:
    if dtype not in (torch.float32, *HALVES):
        return f"takes no {dtype} here"
    if options.softcap is not None:
        return "has no softcap"
    if options.dropout:
        return "drops no weights by a seed of ours"
    back, ahead = options.reach(longest)
    if back < longest - 1 or (not options.causal and ahead < longest - 1):
        return f"has no window, and {options.window} hides tokens of the longest document"
    return None


ORDER: dict[str, Refuses] = {
    "cudnn": _cudnn_refuses,
    "flash": _flash_refuses,
    "efficient": _efficient_refuses,
    "triton": lambda capability, sizes, options: None,
}
"""Back ends, fastest first: see `choose_attention` for the measurement."""


@lru_cache(maxsize=1024)
def choose_attention(
    capability: Capability,
    options: AttentionOptions,
    sizes: AttentionSizes,
    without: frozenset[str] = frozenset(),
) -> Choice:
    """The first back end of :data:`ORDER` that serves the request.

    Measured forward and backward on one H200, causal, heads of 128, TFLOP/s (benchmarks/attention_probe.py):

    ==================================  =====  ======  ================
    documents, query / key heads        cuDNN  Triton  FlashAttention-2
    ==================================  =====  ======  ================
    8 x 2,048, 32 / 8                     442     306               254
    8 x 2,048, 16 / 8                     421     292               234
    1 x 32,768, 32 / 8                    532     362               328
    20 mixed in 11,200 tokens, 32 / 8       -     206               172
    ==================================  =====  ======  ================

    cuDNN's ragged layout gave wrong gradients there (through nvidia-cudnn-frontend; torch's own entry writes
    out of bounds before pytorch#186142), so ragged documents run Triton.

    Args:
        capability: NVIDIA compute capability, or None.
        options: mask, softcap, scale.
        sizes: dtype, heads, tokens, documents.
        without: back ends to pass over, e.g. one that failed its self check on this GPU.

    Returns:
        Its name, and a sentence that names what refused ahead of it.
    """
    refusals: list[str] = []
    for name, refuses in ORDER.items():
        reason = "failed its self check here" if name in without else refuses(capability, sizes, options)
        if reason is None:
            return Choice(name, "; ".join([*refusals, f"{name} serves these sizes"]))
        refusals.append(f"{name} {reason}")
    raise AssertionError("the Triton kernel refuses nothing")


def choose_without_kernels(
    device: torch.device, dtype: torch.dtype, longest: int, options: AttentionOptions
) -> Choice:
    """Where no Triton kernel runs: torch's own attention on a CPU, or the reference."""
    if only_references():
        return Choice("reference", "asked for")
    if device.type != "cpu":
        return Choice("reference", f"no kernels on {device.type}")
    refusal = _cpu_refuses(dtype, longest, options)
    if refusal is not None:
        return Choice("reference", f"torch's CPU attention {refusal}")
    return Choice("cpu", "torch's CPU attention serves these sizes")


@lru_cache(maxsize=16)
def nvidia_capability(device: torch.device) -> Capability:
    """Compute capability of an NVIDIA GPU; None for any other device."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    return torch.cuda.get_device_capability(device)


def starts_early(device: torch.device) -> bool:
    """Whether a kernel can start while the one before it runs, and wait for what that writes."""
    capability = nvidia_capability(device)
    return capability is not None and capability >= (9, 0) and not interpreting()
