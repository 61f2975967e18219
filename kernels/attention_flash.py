"""FlashAttention-2 (Dao 2023) as torch ships it, on packed documents: compute capability 8.0 and up.

Reads token-strided views, knows grouped heads and windows; it has no softcap (torch passes none on). Where
the user registered another implementation with torch (``torch.nn.attention.activate_flash_attention_impl``),
the same calls run that one.
"""

from __future__ import annotations

import torch

from .attention_reference import AttentionOptions


def _limits(options: AttentionOptions) -> tuple[int, int]:
    """Window to the left and right as the operator takes it; -1: none."""
    if options.window is None:
        return -1, 0 if options.causal else -1
    return options.reach(0)


def forward(
    q_THE: torch.Tensor,
    k_TGE: torch.Tensor,
    v_TGE: torch.Tensor,
    offsets_N1: torch.Tensor,
    longest: int,
    options: AttentionOptions,
    out_THE: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """Output (T, H, E), log-sum-exp (H, T), and the generator state the backward operator asks for."""
    left, right = _limits(options)
    o_THE, lse_HT, state, unused, _ = torch.ops.aten._flash_attention_forward(
        q_THE, k_TGE, v_TGE, offsets_N1, offsets_N1, longest, longest, 0.0, options.causal, False,
        scale=options.factor(q_THE.shape[-1]), window_size_left=left, window_size_right=right,
    )  # fmt: skip
    return o_THE, lse_HT, (state, unused)


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
    """Gradients of q, k and v, each contiguous."""
    left, right = _limits(options)
    state, unused = extra
    return torch.ops.aten._flash_attention_backward(
        do_THE, q_THE, k_TGE, v_TGE, o_THE, lse_HT, offsets_N1, offsets_N1, longest, longest, 0.0,
        options.causal, state, unused, scale=options.factor(q_THE.shape[-1]),
        window_size_left=left, window_size_right=right,
    )  # fmt: skip
