"""Memory-efficient attention (Rabe and Staats 2021, xFormers' kernels) from torch, on packed documents.

The one library path to tensor cores before compute capability 8.0 (V100, T4), where FlashAttention-2 does not
run and Triton multiplies without them; fp32 works too. Key/value heads are repeated for grouped queries, and
their gradients summed. No softcap, and no bidirectional window.
"""

from __future__ import annotations

import torch

from .attention_reference import AttentionOptions


def _repeated(x_TGE: torch.Tensor, heads: int) -> torch.Tensor:
    """(T, G, E) as (1, T, H, E)."""
    return x_TGE.repeat_interleave(heads // x_TGE.shape[1], dim=1)[None]


def summed(x_1THE: torch.Tensor, groups: int) -> torch.Tensor:
    """(1, T, H, E) as (T, G, E), members of a group added in fp32."""
    x_THE = x_1THE[0]
    if x_THE.shape[1] == groups:
        return x_THE
    return x_THE.unflatten(1, (groups, -1)).sum(2, dtype=torch.float32).to(x_THE.dtype)


def forward(
    q_THE: torch.Tensor,
    k_TGE: torch.Tensor,
    v_TGE: torch.Tensor,
    offsets_N1: torch.Tensor,
    longest: int,
    options: AttentionOptions,
    out_THE: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """Output (T, H, E), log-sum-exp (H, T), and what the backward operator asks for."""
    tokens, heads, head_size = q_THE.shape
    longest = min(longest, tokens)  # a bound may lie above; the backward operator refuses that
    o, lse_NHL, seed, offset, _, _ = torch.ops.aten._efficient_attention_forward(
        q_THE[None], _repeated(k_TGE, heads), _repeated(v_TGE, heads), None, offsets_N1, offsets_N1, longest,
        longest, 0.0, int(options.causal), True, scale=options.factor(head_size), window_size=options.window,
    )  # fmt: skip
    position_T = torch.arange(tokens, dtype=torch.int32, device=q_THE.device)
    document_T = torch.searchsorted(offsets_N1[1:].contiguous(), position_T, right=True)
    lse_TH = lse_NHL[document_T, :, position_T - offsets_N1[document_T]]
    return o[0], lse_TH.mT, (lse_NHL, seed, offset)


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
    """Gradients of q, k and v."""
    lse_NHL, seed, offset = extra
    longest = min(longest, q_THE.shape[0])
    heads, groups = q_THE.shape[1], k_TGE.shape[1]
    dq, dk, dv, _ = torch.ops.aten._efficient_attention_backward(
        do_THE[None], q_THE[None], _repeated(k_TGE, heads), _repeated(v_TGE, heads), None, o_THE[None],
        offsets_N1, offsets_N1, longest, longest, lse_NHL, 0.0, seed, offset, int(options.causal), False,
        scale=options.factor(q_THE.shape[-1]), window_size=options.window,
    )  # fmt: skip
    return dq[0], summed(dk, groups), summed(dv, groups)
