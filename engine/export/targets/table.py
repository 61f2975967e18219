"""The targets beside GGUF models and merged weights, by the setting that asks for them. Light."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from ...errors import WhetError

TargetName = Literal["merged_4bit", "fp8", "adapter_gguf"]


@dataclass(frozen=True)
class Target:
    """Where one target lies in an export, and how it is asked for on the command line."""

    folder: str
    flag: str
    linear_bytes: float
    """Of a linear layer's number; all others take two. 0: as large as the adapter."""


TARGETS: dict[TargetName, Target] = {
    "merged_4bit": Target("merged-4bit", "--merged-4bit", 4.5 / 8),
    "fp8": Target("fp8", "--fp8", 1.0),
    "adapter_gguf": Target("adapter-gguf", "--adapter-gguf", 0),
}


def check_targets(names: Iterable[str]) -> list[TargetName]:
    """Each once. Raises WhetError ``export.unknown_target`` with the nearest name."""
    known: dict[str, TargetName] = {name: name for name in TARGETS}
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise WhetError(
                "export.unknown_target",
                f"There is no export target {name!r}.",
                f"{f'Did you mean {near[0]}? ' if near else ''}Known: {', '.join(known)}.",
            )
    return [known[name] for name in wanted]
