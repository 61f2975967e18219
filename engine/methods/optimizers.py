"""Whether the optimizer that was asked for works here, and what steps in if not."""

from __future__ import annotations

import torch

from ..findings import Finding, Fix
from .random_numbers import preserved_rng


def usable_optimizer(
    name: str, device: torch.device, *, in_shares: bool = False
) -> tuple[str, Finding | None]:
    """``name``, or ``adamw`` with a finding that says why.

    8-bit AdamW (arXiv:2110.02861) is tried on one small tensor: bitsandbytes may be missing, or may have no
    kernel for this device. Of weights in shares it does nothing: its states belong to blocks of whole ones.
    """
    if name != "adamw_8bit":
        return name, None
    if in_shares:
        return "adamw", _no_8bit("its states belong to blocks of whole weights, not of shares (FSDP)", device)
    try:
        _try_8bit(device)
    except (ImportError, RuntimeError, NotImplementedError) as error:
        return "adamw", _no_8bit(str(error).strip().splitlines()[0], device)
    return name, None


def _no_8bit(reason: str, device: torch.device) -> Finding:
    return Finding(
        id="E02",
        severity="note",
        title="8-bit AdamW does not work here; plain AdamW (fp32 states) is used instead.",
        evidence={"reason": reason, "device": device.type},
        fix=Fix(text="Ask for plain AdamW.", patch={"training.optimizer": "adamw"}),
    )


def _try_8bit(device: torch.device) -> None:
    from bitsandbytes.optim import AdamW8bit

    with preserved_rng(device):
        # States of fewer than 4096 numbers stay in fp32 and would prove nothing.
        weights = torch.nn.Parameter(torch.zeros(4096, device=device))
        weights.grad = torch.ones_like(weights)
        AdamW8bit([weights]).step()
