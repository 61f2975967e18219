"""Attention over packed documents in plain torch: what every back end is held against.

Legend: T tokens (flattened, no padding), H query heads, G key/value heads, M = H / G query heads of one
key/value head, E head size, N documents, L longest document, R rows of L columns.

Documents are gathered into R rows, padded to L columns, and attend inside their row under a mask. When
documents differ so much that R L² would exceed T², one row of T columns holds them all instead. Both forms
are loop-free and read the offsets on the device only, so that they may also be captured in a CUDA graph.
Arithmetic is in float32, or in float64 for float64 inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .dropout import kept_reference


@dataclass(frozen=True)
class AttentionOptions:
    """What a query may see and how scores become weights.

    Args:
        causal: a token sees itself and what came before it in its document; else the whole document.
        window: as transformers' masks define it: causal, the last ``window`` tokens including itself;
            bidirectional, tokens at most ``window`` away on either side. None: no limit.
        softcap: scores become ``softcap * tanh(scores / softcap)``. None: unchanged.
        scale: factor of q·k; None: ``E ** -0.5``.

    Raises:
        ValueError: for a window, softcap or scale that is not positive.
    """

    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it has to be a probability below 1")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window is {self.window}; it has to be at least 1, or None for no limit")
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"softcap is {self.softcap}; it has to be positive, or None for none")
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"scale is {self.scale}; it has to be positive, or None for head_size ** -0.5")

    def factor(self, head_size: int) -> float:
        """What q·k is multiplied by."""
        return head_size**-0.5 if self.scale is None else self.scale

    def reach(self, longest: int) -> tuple[int, int]:
        """How many tokens back and ahead a token of a document of ``longest`` tokens may see."""
        back = ahead = longest
        if self.window is not None:
            back, ahead = (self.window - 1 if self.causal else self.window), self.window
        return back, 0 if self.causal else ahead


@dataclass(frozen=True)
class _Rows:
    """Documents laid out in rows: which token each place holds, and which place each token has."""

    token_RL: torch.Tensor
    place_T: torch.Tensor
    mask_RLL: torch.Tensor

    def gather(self, x_THE: torch.Tensor, kv_heads: int) -> torch.Tensor:
        """(T, H, E) to (R, G, M, L, E) in the computing dtype."""
        x_RLHE = x_THE[self.token_RL].to(_computing(x_THE.dtype))
        rows, length, heads, size = x_RLHE.shape
        return x_RLHE.view(rows, length, kv_heads, heads // kv_heads, size).permute(0, 2, 3, 1, 4)

    def scatter(self, x_RGMLE: torch.Tensor) -> torch.Tensor:
        """(R, G, M, L, E) back to (T, H, E); what stands in padded places is dropped."""
        rows, groups, members, length, size = x_RGMLE.shape
        x_PHE = x_RGMLE.permute(0, 3, 1, 2, 4).reshape(rows * length, groups * members, size)
        return x_PHE[self.place_T]


def _computing(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rows(offsets_N1: torch.Tensor, tokens: int, longest: int, options: AttentionOptions) -> _Rows:
    device = offsets_N1.device
    offsets_N1 = offsets_N1.long()
    position_T = torch.arange(tokens, device=device)
    document_T = torch.searchsorted(offsets_N1[1:].contiguous(), position_T, right=True)
    documents = offsets_N1.numel() - 1
    if documents * longest * longest < tokens * tokens:
        column_L = torch.arange(longest, device=device)
        token_RL = offsets_N1[:-1, None] + column_L
        real_RL = token_RL < offsets_N1[1:, None]
        token_RL = token_RL.clamp(max=tokens - 1)
        place_T = document_T * longest + position_T - offsets_N1[document_T]
        same_RLL = real_RL[:, :, None] & real_RL[:, None, :]
    else:
        column_L, token_RL, place_T = position_T, position_T[None], position_T
        same_RLL = (document_T[:, None] == document_T)[None]
    back, ahead = options.reach(longest)
    distance_LL = column_L[:, None] - column_L
    return _Rows(token_RL, place_T, same_RLL & (distance_LL <= back) & (distance_LL >= -ahead))


def _scores(q_RGMLE: torch.Tensor, k_RG1LE: torch.Tensor, options: AttentionOptions) -> torch.Tensor:
    scores_RGMLL = (q_RGMLE @ k_RG1LE.mT) * options.factor(q_RGMLE.shape[-1])
    if options.softcap is not None:
        scores_RGMLL = torch.tanh(scores_RGMLL / options.softcap) * options.softcap
    return scores_RGMLL


def forward(
    q_THE: torch.Tensor,
    k_TGE: torch.Tensor,
    v_TGE: torch.Tensor,
    offsets_N1: torch.Tensor,
    longest: int,
    options: AttentionOptions,
    out_THE: torch.Tensor | None = None,
    seed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """Output (T, H, E) in q's dtype and the log-sum-exp of the scores (H, T), differentiable by autograd."""
    tokens, heads, _ = q_THE.shape
    groups = k_TGE.shape[1]
    if tokens == 0:  # a sum of nothing, so that autograd still knows all three inputs
        return q_THE + 0 * (k_TGE.sum() + v_TGE.sum()), q_THE.new_empty(heads, 0, dtype=torch.float32), ()
    rows = _rows(offsets_N1, tokens, longest, options)
    q, k, v = rows.gather(q_THE, groups), rows.gather(k_TGE, groups), rows.gather(v_TGE, groups)
    # A padded place sees itself, so that no row of scores is without a finite entry.
    visible = rows.mask_RLL | torch.eye(rows.mask_RLL.shape[-1], dtype=torch.bool, device=q.device)
    scores = _scores(q, k, options).masked_fill(~visible[:, None, None], float("-inf"))
    lse_RGML = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse_RGML[..., None])
    extra: tuple[torch.Tensor, ...] = ()
    if seed is not None:
        weights, extra = weights * _kept(rows, heads, groups, seed, options.dropout), (seed,)
    o_THE = rows.scatter(weights @ v).to(q_THE.dtype)
    return o_THE, rows.scatter(lse_RGML[..., None])[..., 0].mT, extra


def _kept(rows: _Rows, heads: int, groups: int, seed: torch.Tensor, dropout: float) -> torch.Tensor:
    """What each weight is multiplied by, (R, G, M, L, L): 0, or 1 / (1 - dropout)."""
    token_RL = rows.token_RL
    first_GM = torch.arange(heads, device=seed.device).view(groups, -1) * len(rows.place_T)
    row_RGML1 = (first_GM[..., None] + token_RL[:, None, None, :])[..., None]
    kept = kept_reference(row_RGML1, token_RL[:, None, None, None, :], seed, dropout)
    return kept / (1 - dropout)


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
    """Gradients of q, k and v from the forward pass's output and log-sum-exp (FlashAttention-2, §3.1.2)."""
    tokens = q_THE.shape[0]
    groups = k_TGE.shape[1]
    if tokens == 0:
        return torch.empty_like(q_THE), torch.empty_like(k_TGE), torch.empty_like(v_TGE)
    rows = _rows(offsets_N1, tokens, longest, options)
    q, k, v = rows.gather(q_THE, groups), rows.gather(k_TGE, groups), rows.gather(v_TGE, groups)
    do, o = rows.gather(do_THE, groups), rows.gather(o_THE, groups)
    lse_RGML1 = rows.gather(lse_HT.mT[..., None], groups)
    scores = _scores(q, k, options)
    weights = torch.exp(scores - lse_RGML1).masked_fill(~rows.mask_RLL[:, None, None], 0.0)
    pull, used = do @ v.mT, weights
    if extra:
        kept = _kept(rows, q_THE.shape[1], groups, extra[0], options.dropout)
        pull, used = pull * kept, weights * kept
    dv = (used.mT @ do).sum(2, keepdim=True)
    ds = weights * (pull - (do * o).sum(-1, keepdim=True))
    if options.softcap is not None:
        ds = ds * (1 - (scores / options.softcap).square()).masked_fill(~rows.mask_RLL[:, None, None], 0.0)
    ds = ds * options.factor(q_THE.shape[-1])
    dk = (ds.mT @ q).sum(2, keepdim=True)
    gradients = (rows.scatter(ds @ k), rows.scatter(dk), rows.scatter(dv))
    dq_THE, dk_TGE, dv_TGE = (x.to(q_THE.dtype) for x in gradients)
    return dq_THE, dk_TGE, dv_TGE
