"""A conversation with several voices: each has its own history, since each heard its own answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whet.engine.api import ChatTarget, Who

LONGEST, WARMEST = 2048, 2.0


@dataclass
class Sampling:
    """How answers are drawn."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    system: str = ""

    def longer(self, factor: float) -> None:
        """Twice or half as many tokens."""
        self.max_new_tokens = int(min(LONGEST, max(16, self.max_new_tokens * factor)))

    def warmer(self, by: float) -> None:
        """Temperature up or down; 0 is greedy."""
        self.temperature = round(min(WARMEST, max(0.0, self.temperature + by)), 1)

    def words(self) -> str:
        """In one line."""
        drawn = "greedy" if self.temperature == 0 else f"temperature {self.temperature}"
        return f"{drawn} · at most {self.max_new_tokens} tokens" + (
            " · with a system message" if self.system else ""
        )


@dataclass
class Conversation:
    """The turns of one voice, as a template takes them."""

    who: Who
    turns: list[dict[str, str]] = field(default_factory=list)

    def asked(self, question: str, system: str) -> list[dict[str, str]]:
        """Add a question; all messages to answer."""
        self.turns.append({"role": "user", "content": question})
        return [{"role": "system", "content": system}, *self.turns] if system else list(self.turns)

    def heard(self, answer: str) -> None:
        """Add the whole answer."""
        self.turns.append({"role": "assistant", "content": answer})

    def retract(self) -> None:
        """Forget a question that got no answer, so that roles go on alternating."""
        if self.turns and self.turns[-1]["role"] == "user":
            self.turns.pop()


def order(target: ChatTarget) -> list[Who]:
    """Base first, then what was made of it."""
    places: Sequence[Who] = ("base", "tuned", "gguf")
    return [who for who in places if who in target.voices]


def pieces(
    texts: Iterator[tuple[str, bool]], now: Iterator[float], every: float
) -> Iterator[tuple[str, bool]]:
    """Join streamed pieces so that at most one comes in ``every`` seconds; the last one always comes.

    Args:
        texts: text and whether it is the end.
        now: the clock, in seconds.
        every: seconds between two joined pieces.
    """
    waiting, told = "", -every
    for text, end in texts:
        waiting += text
        clock = next(now)
        if end or clock - told >= every:
            yield waiting, end
            waiting, told = "", clock
