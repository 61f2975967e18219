"""The targets beside GGUF models and merged weights, by the setting that asks for them. Light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TargetName = Literal["merged_4bit", "fp8", "adapter_gguf"]


@dataclass(frozen=True)
class Target:
    """Where one target lies in an export, and what it takes."""

    folder: str
    linear_bytes: float
    """Of a linear layer's number; all others take two. 0: as large as the adapter."""


TARGETS: dict[TargetName, Target] = {
    "merged_4bit": Target("merged-4bit", 4.5 / 8),
    "fp8": Target("fp8", 1.0),
    "adapter_gguf": Target("adapter-gguf", 0),
}
