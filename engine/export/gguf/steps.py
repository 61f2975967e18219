"""The steps of a tokenizer.json's normalizer or pre-tokenizer, one by one. Light."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def parts(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps in order, sequences opened."""
    if step is None:
        return
    if step["type"] != "Sequence":
        yield step
    for one in (*step.get("normalizers", ()), *step.get("pretokenizers", ())):
        yield from parts(one)


def names(step: dict[str, Any] | None) -> str:
    """Their types, for a message."""
    return " + ".join(part["type"] for part in parts(step)) or "none"
