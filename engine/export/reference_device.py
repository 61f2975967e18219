"""Where the reference of a proof is computed, and how precisely. [heavy: torch]"""

from __future__ import annotations

import torch

from ..hardware import host_memory
from .targets.memory import DEFAULT_SHARE

WEIGHTS_SHARE = 0.8
"""float32 weights may take this part of the memory that may be used; otherwise the reference is bfloat16,
and says so."""


def place(float32_bytes: int, share: float = DEFAULT_SHARE) -> tuple[torch.device, torch.dtype]:
    """Where the reference runs: a GPU with room for float32, else the CPU, in bfloat16 when memory is
    short.

    Args:
        float32_bytes: of all weights.
        share: of the free memory, the GPU's or the machine's, that may be used.
    """
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        if float32_bytes < WEIGHTS_SHARE * share * free:
            torch.backends.cuda.matmul.allow_tf32 = False
            return torch.device("cuda"), torch.float32
    # The files' cache counts as free: after an export has written gigabytes it holds most of the memory.
    fits = float32_bytes < WEIGHTS_SHARE * share * host_memory()[1]
    return torch.device("cpu"), torch.float32 if fits else torch.bfloat16
