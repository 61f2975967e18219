"""What number formats and 8-bit optimizers this machine can really run."""

from __future__ import annotations

import torch

from ..methods.optimizers import usable_optimizer
from .notes import say

BF16_CAPABILITY = (8, 0)
"""First CUDA compute capability with bf16 tensor cores (Ampere)."""

EIGHT_BIT_OPTIMIZERS = ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit")


def is_bf16_supported(including_emulation: bool = False) -> bool:
    """Whether training should compute in bfloat16 here: a CUDA device of capability 8.0 or newer.

    On CPU the answer is False: fp32 is both faster and exact there.

    Args:
        including_emulation: also count older devices that emulate bf16 in software.
    """
    if not torch.cuda.is_available():
        return False
    if including_emulation:
        return torch.cuda.is_bf16_supported(including_emulation=True)
    return torch.cuda.get_device_capability() >= BF16_CAPABILITY


is_bfloat16_supported = is_bf16_supported
"""The name that most notebooks import."""


def compute_dtype() -> torch.dtype:
    """The dtype `dtype=None` resolves to: bf16 where the GPU has it, else fp16 on a GPU, fp32 on a CPU."""
    if is_bf16_supported():
        return torch.bfloat16
    return torch.float16 if torch.cuda.is_available() else torch.float32


def resolve_mixed_precision(bf16: bool | None, fp16: bool | None) -> tuple[bool, bool]:
    """Make a `(bf16, fp16)` request runnable on this machine, saying aloud what had to change.

    Both unset means: follow the hardware. Both True is left for transformers to refuse.
    """
    has_cuda, has_bf16 = torch.cuda.is_available(), is_bf16_supported()
    if bf16 is None and fp16 is None:
        return has_bf16, has_cuda and not has_bf16
    if bf16 and not has_bf16:
        chosen = "fp16" if has_cuda else "fp32"
        say(f"bf16=True, but this machine has no bf16 GPU: training computes in {chosen}.")
        return False, has_cuda
    if fp16 and not has_cuda:
        # `fp16 = not is_bf16_supported()` is common in scripts and means "the best this machine has".
        say("fp16=True, but there is no GPU: training computes in fp32.")
        return False, False
    return bool(bf16), bool(fp16)


def resolve_optimizer(name: str) -> str:
    """`name`, or fp32 AdamW where bitsandbytes cannot run its 8-bit one here; the fallback is said aloud."""
    if name not in EIGHT_BIT_OPTIMIZERS:
        return name
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _, finding = usable_optimizer("adamw_8bit", device)
    if finding is None:
        return name
    say(f"optim={name!r}: {finding.title} Reason: {finding.evidence['reason']}.")
    return "adamw_torch"
