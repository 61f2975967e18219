"""Proof that merged weights are base and adapter where no text can be put in: against PEFT's own merge,
tensor by tensor. Needs torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel

from .base_weights import BaseWeights
from .verdict import Proof, Verdict, fingerprint, save_verdict

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
    whole: Any = getattr(transformers, name).from_pretrained(base, dtype=torch.float32, use_safetensors=True)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    wanted = PeftModel.from_pretrained(whole, str(adapter)).merge_and_unload().state_dict()  # type: ignore[operator]
    proof = _compare(before, wanted, BaseWeights(merged))
    verdict = Verdict.of(
        [proof],
        merged,
        file_type="merged",
        seconds=round(time.monotonic() - started, 2),
        fingerprint=fingerprint(merged),
    )
    save_verdict(verdict, merged)
    return verdict


def _compare(before: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], found: BaseWeights) -> Proof:
    moved, wrong = 0, []
    for name in found.names():
        written, right = found.tensor(name), wanted[name]
        allowed = 2 * ROUNDING[written.dtype] if written.is_floating_point() else 0.0
        away, size = (written.float() - right.float()).abs(), right.float().abs()
        # Where base and update nearly cancel, the sum itself is rounded in float32.
        if bool((away > allowed * size + 1e-6 * size.max()).any()):
            wrong.append(name)
        moved += not torch.equal(before[name], right)
    count = len(found.names())
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
