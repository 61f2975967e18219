"""What a merge did. Light."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class MergeReport:
    """What the merge did; ``notes`` are sentences a person should read."""

    path: str
    dtype: str
    changed: int
    """Tensors that differ from the base by the adapter."""
    tensors: int
    bytes: int = 0
    untied: bool = False
    """The base shared its embedding with its head and the result does not, since only one of them was
    trained."""
    dequantised: bool = False
    """The base exists in rounded form alone, and its rounding error stays in the result."""
    notes: list[str] = field(default_factory=list)
