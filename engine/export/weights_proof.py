"""Proof that merged weights are base and adapter where no text can be put in: against PEFT's own merge,
tensor by tensor. Needs torch."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel

from ..models.own_files import WEIGHTS
from .base_weights import BaseWeights
from .verdict import Proof, Verdict, conclude

Weights = dict[str, torch.Tensor]
ROUNDING = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}
"""How far one rounding to that type may move a number, as a share of it."""


def prove_weights(base: Path, adapter: Path, merged: Path, name: str) -> Verdict:
    """The verdict on a merged folder, saved beside it.

    Args:
        base: the model the adapter was trained on.
        adapter: PEFT's folder.
        merged: the folder to prove.
        name: transformers' class.
    """
    started = time.monotonic()
    options: dict[str, Any] = {"dtype": torch.float32, **WEIGHTS}
    kind: Any = getattr(transformers, name)
    whole = kind.from_pretrained(base, **options)
    before = {name: _digest(value) for name, value in whole.state_dict().items()}
    trained: Any = PeftModel.from_pretrained(whole, str(adapter))
    wanted = trained.merge_and_unload().state_dict()
    found = kind.from_pretrained(merged, **options).state_dict()
    proof = _compare(before, wanted, found, BaseWeights(merged).dtype())
    return conclude(proof, merged, "merged", started)


def _digest(tensor: torch.Tensor) -> bytes:
    """Of its bytes: a merge changes the tensors in place, and copies of all would be a third model."""
    held: Any = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.blake2b(held, digest_size=16).digest()


def _compare(before: dict[str, bytes], wanted: Weights, found: Weights, stored: torch.dtype) -> Proof:
    moved, wrong = 0, sorted(set(wanted) ^ set(found))
    for name in set(wanted) & set(found):
        right, written = wanted[name].float(), found[name].float()
        away, size = (written - right).abs(), right.abs()
        # Where base and update nearly cancel, the sum itself is rounded in float32.
        # NaN is within no bounds.
        if not bool((away <= 2 * ROUNDING[stored] * size + 1e-6 * size.max()).all()):
            wrong.append(name)
        moved += before[name] != _digest(wanted[name])
    count = len(found)
    right_ones = not wrong and moved > 0
    first = f", the first {wrong[0]}" if wrong else ""
    return Proof(
        name="merge",
        status="pass" if right_ones else "fail" if wrong else "warn",
        summary=f"{len(wrong)} of {count} merged tensors are further from PEFT's own merge than rounding "
        f"explains{first}; training moved {moved}.",
        evidence={"tensors": count, "moved": moved, "wrong": wrong[:20]},
        fix="" if right_ones else "Merge again from the same base and adapter: `whet export RUN --merged`.",
    )
