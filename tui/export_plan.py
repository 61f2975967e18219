"""What an export would write: choices with their sizes, and whether the disk has room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MERGED = "merged"
WORDS = {
    "q4_k_m": "the usual choice",
    "q8_0": "nearly lossless",
    "f16": "the reference",
    "q5_k_m": "a little better than q4_k_m",
    "q6_k": "between q5_k_m and q8_0",
    "q2_k": "smallest, clearly worse",
    MERGED: "for vLLM and transformers",
}


@dataclass(frozen=True)
class Choice:
    """One thing that can be written."""

    name: str
    bytes: int

    @property
    def words(self) -> str:
        """What it is good for; empty where the name says it."""
        return WORDS.get(self.name, "")


def choices(parameters: int, types: Mapping[str, float]) -> list[Choice]:
    """Merged weights, then every GGUF type; sizes by bits a weight."""
    ggufs = [Choice(name, int(parameters * bits / 8)) for name, bits in types.items()]
    return [*ggufs[:3], Choice(MERGED, parameters * 2), *ggufs[3:]]


def needed(wanted: Iterable[str], every: Iterable[Choice]) -> int:
    """Bytes at the worst moment: what is asked for, the merge, and the f16 file that others come from."""
    sizes = {one.name: one.bytes for one in every}
    names = set(wanted)
    if not names:
        return 0
    return sum(sizes[name] for name in names | {MERGED} | ({"f16"} if names - {MERGED} else set()))
