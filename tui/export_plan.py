"""What an export would write: choices with their sizes, and whether the disk has room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .actions import TARGETS

MERGED = "merged"
WORDS = {
    "q4_k_m": "the usual choice",
    "q8_0": "nearly lossless",
    "f16": "the reference",
    "q5_k_m": "a bit above q4_k_m",
    "q6_k": "above q5_k_m",
    "q2_k": "clearly worse",
    "iq3_xxs": "small for its loss",
    "iq2_xs": "clearly worse",
    "iq1_s": "smallest, much worse",
    "tq1_0": "ternary models only",
    "tq2_0": "ternary models only",
    MERGED: "transformers and vLLM",
    "merged_4bit": "bitsandbytes nf4",
    "fp8": "vLLM and SGLang",
    "adapter_gguf": "over the base's GGUF",
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


def choices(parameters: int, types: Mapping[str, float], targets: Mapping[str, int]) -> list[Choice]:
    """The usual GGUF types, what is written beside GGUF with its bytes, all other types; sizes by bits a
    weight."""
    ggufs = [Choice(name, int(parameters * bits / 8)) for name, bits in types.items()]
    return [*ggufs[:3], *(Choice(name, size) for name, size in targets.items()), *ggufs[3:]]


def needed(wanted: Iterable[str], every: Iterable[Choice]) -> int:
    """Bytes at the worst moment: what is asked for, the merge, and the f16 file that others come from.

    An adapter's GGUF needs no merge, but its proof a base of the same size.
    """
    sizes = {one.name: one.bytes for one in every}
    names = set(wanted)
    if not names:
        return 0
    ggufs = names - {MERGED, *TARGETS}
    return sum(sizes[name] for name in names | {MERGED} | ({"f16"} if ggufs else set()))
