"""Two things a training must hold, tried once on a few short rows of its own before the first step.

T02: a step cut into micro-batches of one row has the loss and gradients of the same step in one piece.
T03: a row's hidden states are the same beside other rows as alone.

Nothing is left behind: no gradient, no random number drawn, no statistic counted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ...findings import Finding, Fix
from ...models.fast_path import causal_model
from ...parallel.fsdp import whole
from ..random_numbers import preserved_rng
from .collation import PackingCollator, count_supervised
from .packed_steps import PaddingFreeCollator, TokenRow, micro_batch
from .trainer import SupervisedTrainer

ROWS, LONGEST, SEARCHED = 3, 512, 256
"""Rows that are tried, the longest they may be, and how many are looked through for short ones."""
LOSS_GAP, GRADIENT_GAP, LEAK = 0.02, 0.1, 0.1
"""Relative differences beyond rounding; a wrong scale is off by a half, a leak by more than a tenth."""
COMPARED = 4_000_000
"""Numbers of gradients that are compared; the rest follow the same scale."""


@dataclass(frozen=True)
class Gap:
    """How far two ways to compute the same thing are apart, relative to its size."""

    loss: float
    gradient: float


def self_tests(trainer: SupervisedTrainer, rows: Any) -> list[Finding]:
    """Both tests; a note where the rows are too long for it.

    Args:
        trainer: built, not yet training.
        rows: tokenised rows with ``input_ids`` and ``labels``.
    """
    chosen = short_rows(rows)
    if len(chosen) < 2:
        return []
    with undisturbed(trainer):
        share = leak(trainer, chosen)
        if share > LEAK:  # and then rows together cannot have the loss of rows alone
            return [_leaking(share)]
        if trainer.is_deepspeed_enabled:  # its engine alone goes backward, and is built when training begins
            return []
        gap = accumulation_gap(trainer, chosen)
        if gap.loss > LOSS_GAP or gap.gradient > GRADIENT_GAP:
            return [_wrong_scale(gap, len(chosen))]
    return []


def short_rows(rows: Any) -> list[dict[str, np.ndarray]]:
    """Up to three short rows of uneven length with supervised tokens, of the first few hundred."""
    by_length: dict[int, dict[str, np.ndarray]] = {}
    for index in range(min(len(rows), SEARCHED)):
        row = rows[index]
        labels = np.asarray(row["labels"])
        if 2 <= len(labels) <= LONGEST and (labels[1:] >= 0).any():
            by_length.setdefault(len(labels), {"input_ids": np.asarray(row["input_ids"]), "labels": labels})
    lengths = sorted(by_length)[: 2 * ROWS : 2] or []
    return [by_length[length] for length in lengths][:ROWS]


def accumulation_gap(trainer: SupervisedTrainer, rows: Sequence[dict[str, Any]]) -> Gap:
    """n micro-batches of one row against one of n rows."""
    pieces, whole = (_step(trainer, split) for split in ([[row] for row in rows], [list(rows)]))
    scale = max(abs(whole[0]), 1e-6)
    norm = max(float(whole[1].norm()), 1e-12)
    return Gap(abs(pieces[0] - whole[0]) / scale, float((pieces[1] - whole[1]).norm()) / norm)


def _step(trainer: SupervisedTrainer, split: Sequence[list[Any]]) -> tuple[float, torch.Tensor]:
    """(loss, some gradients) of an optimizer step that is cut like this."""
    batches = [collated(trainer, rows) for rows in split]
    model: Any = trainer.model
    for param in model.parameters():
        param.grad = None
    if trainer.fast is not None and "rows" in batches[0]:
        loss = _fast_loss(trainer, [batch["rows"] for batch in batches])
    else:
        loss = _plain_loss(trainer, batches)
    return loss, _gradients(trainer.model)


def collated(trainer: SupervisedTrainer, rows: list[Any]) -> dict[str, Any]:
    """As the trainer's own collator makes it; where that one takes bins of rows, the bins are left out."""
    collate: Any = trainer.data_collator
    if isinstance(collate, PackingCollator):
        return dict(replace(collate, rows=rows)([{"rows": range(len(rows))}]))
    if isinstance(collate, PaddingFreeCollator):
        collate = PaddingFreeCollator()
    return dict(collate(rows))


def _fast_loss(trainer: SupervisedTrainer, groups: Sequence[list[TokenRow]]) -> float:
    """Forward and backward as the fast path's steps, but never as a graph: it would keep these gradients."""
    fast = trainer.fast
    assert fast is not None
    supervised = sum(int((row.labels >= 0).sum()) for rows in groups for row in rows)
    scale, total = torch.tensor(1.0 / max(supervised, 1), device=fast.device), 0.0
    for rows in groups:
        loss, _ = fast.forward_backward(micro_batch(rows, fast.filler).to(fast.device), scale)
        total += float(loss * scale)
    return total


def _plain_loss(trainer: SupervisedTrainer, batches: Sequence[dict[str, Any]]) -> float:
    """The trainer's own steps, gradients scaled as it scales them."""
    model: Any = trainer.model
    state = trainer.accelerator.gradient_state
    items = trainer._get_num_items_in_batch(list(batches), trainer.args.device)
    trainer.current_gradient_accumulation_steps = len(batches)
    total = 0.0
    for number, batch in enumerate(batches):
        state._set_sync_gradients(number == len(batches) - 1)
        with trainer.accelerator.autocast():
            total += float(trainer.training_step(model, batch, items))
    return total


def _gradients(model: Any) -> torch.Tensor:
    taken, room = [], COMPARED
    for param in model.parameters():
        if param.grad is not None and param.numel() <= room:
            taken.append(whole(param.grad.detach()).float().flatten().cpu())
            room -= param.numel()
    return torch.cat(taken) if taken else torch.zeros(1)


def leak(trainer: SupervisedTrainer, rows: Sequence[dict[str, Any]]) -> float:
    """Largest relative difference of a row's hidden states beside the others and alone."""
    model: Any = trainer.model
    model.eval()
    lengths = [len(row["input_ids"]) for row in rows]
    together = _hidden(trainer, list(rows), lengths)
    alone = [_hidden(trainer, [row], [length])[0] for row, length in zip(rows, lengths, strict=True)]
    gaps = [(a - b).norm() / b.norm().clamp_min(1e-12) for a, b in zip(together, alone, strict=True)]
    return float(max(gaps))


@torch.no_grad()
def _hidden(trainer: SupervisedTrainer, rows: list[Any], lengths: Sequence[int]) -> list[torch.Tensor]:
    """Last hidden states (T, D) in fp32, row by row, as the loss gets them."""
    batch = collated(trainer, rows)
    if trainer.fast is not None and "rows" in batch:
        packed = micro_batch(batch["rows"], trainer.fast.filler).to(trainer.fast.device).packed
        hidden_TD = trainer.fast.program.hidden_states(packed).float()
        return list(hidden_TD[: sum(lengths)].split(list(lengths)))
    seen: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        seen.append(output[0].detach().float())

    handle = causal_model(trainer.model).base_model.register_forward_hook(keep)
    try:
        inputs = trainer._prepare_inputs(batch)
        with trainer.accelerator.autocast(), trainer.compute_loss_context_manager():
            trainer.compute_loss(trainer.model, inputs, num_items_in_batch=count_supervised(inputs["labels"]))
    finally:
        handle.remove()
    hidden_BTD = seen[0]
    if len(hidden_BTD) == len(rows):
        return [hidden_BTD[index, :length] for index, length in enumerate(lengths)]
    return list(hidden_BTD[0, : sum(lengths)].split(list(lengths)))


@contextmanager
def undisturbed(trainer: SupervisedTrainer) -> Iterator[None]:
    """No dropout inside; afterwards gradients, statistics, modes and random numbers are as before."""
    model: Any = trainer.model
    training = {module: module.training for module in model.modules()}
    dropouts = {m: m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    kept = copy.deepcopy((trainer.stats, trainer._metrics, trainer._total_train_tokens))
    sync = trainer.accelerator.gradient_state.sync_gradients
    for module in dropouts:
        module.p = 0.0
    with preserved_rng(trainer.args.device):
        try:
            yield
        finally:
            for module, p in dropouts.items():
                module.p = p
            for module, mode in training.items():
                module.training = mode
            for param in model.parameters():
                param.grad = None
            stats, trainer._metrics, trainer._total_train_tokens = kept
            vars(trainer.stats).update(vars(stats))  # others hold the object itself
            trainer.accelerator.gradient_state._set_sync_gradients(sync)


def _wrong_scale(gap: Gap, rows: int) -> Finding:
    return Finding(
        id="T02",
        severity="error",
        title=f"A step of {rows} micro-batches is not the step in one piece: the loss differs by "
        f"{gap.loss:.0%}, gradients by {gap.gradient:.0%}.",
        evidence={"loss_gap": round(gap.loss, 4), "gradient_gap": round(gap.gradient, 4), "rows": rows},
        fix=Fix(
            text="Let the loss be a sum over tokens divided by num_items_in_batch (the supervised tokens of "
            "the whole step), or train with gradient_accumulation=1.",
            patch={"training.gradient_accumulation": 1},
        ),
    )


def _leaking(share: float) -> Finding:
    return Finding(
        id="T03",
        severity="error",
        title=f"Rows that share a sequence see each other: hidden states differ by {share:.0%} from those of "
        "each row alone.",
        evidence={"difference": round(share, 4), "limit": LEAK},
        fix=Fix(
            text="Use attention of variable length (position_ids that restart, the cache off, an attention "
            "implementation that reads them), or do not pack.",
            patch={"method.packing": False},
        ),
    )
