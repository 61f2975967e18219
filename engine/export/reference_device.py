"""Where the reference of a proof is computed, and how precisely. [heavy: torch]"""

from __future__ import annotations

import os

import torch

FULL_PRECISION_SHARE = 0.6
"""float32 weights may take this share of the free memory; otherwise the reference is bfloat16, and says
so."""


def place(float32_bytes: int) -> tuple[torch.device, torch.dtype]:
    """Where the reference runs: a GPU with room for float32, else the CPU, in bfloat16 when memory is
    short."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        if float32_bytes < FULL_PRECISION_SHARE * free:
            torch.backends.cuda.matmul.allow_tf32 = False
            return torch.device("cuda"), torch.float32
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fits = float32_bytes < FULL_PRECISION_SHARE * free
    return torch.device("cpu"), torch.float32 if fits else torch.bfloat16
