"""What the smoke test asks of both sides: conversations and token budgets. Light.

A case is a conversation that ends in a user's turn (rendered with the generation prompt) or in an answer
(without). A template that refuses a case must refuse it on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Message = dict[str, str]

SYSTEM: Message = {"role": "system", "content": "You answer in one short sentence."}
ASK: Message = {"role": "user", "content": "What is 12 × 3?  Show it\nin two lines."}
ANSWER: Message = {"role": "assistant", "content": "It is 36 – “thirty-six”.\n\n    12 + 12 + 12"}
AGAIN: Message = {"role": "user", "content": "Und auf Deutsch? 请用中文. 🙂"}
MARKER = "Zqanswerz"
"""Content of the assistant's turn when looking for the token that ends it."""

CASES: dict[str, list[Message]] = {
    "single": [ASK],
    "system": [SYSTEM, ASK],
    "multi-turn": [ASK, ANSWER, AGAIN],
    "system, multi-turn": [SYSTEM, ASK, ANSWER, AGAIN],
    "answered": [ASK, ANSWER],
    "system, answered twice": [
        SYSTEM,
        ASK,
        ANSWER,
        AGAIN,
        {"role": "assistant", "content": "Sechsunddreißig."},
    ],
}
THINKING: Message = {"role": "assistant", "content": "<think>\n3 × 12\n</think>\n\nIt is 36."}


@dataclass(frozen=True)
class Limits:
    """How much the smoke test looks at. Enough for stable means, small enough for two CPU cores."""

    held_out_rows: int = 16
    row_tokens: int = 256
    """Longer held-out rows are left out: cutting one would cut its answer."""
    positions: int = 512
    """Most token positions whose whole distributions are compared."""
    logits_bytes: int = 192 << 20
    """Most bytes of saved reference distributions; a vocabulary of 150,000 gets about 330 positions."""
    probe_length: int = 96
    prompts: int = 6
    new_tokens: int = 96
    """Budget of a greedy answer."""

    def positions_for(self, vocabulary: int) -> int:
        return max(32, min(self.positions, self.logits_bytes // (4 * vocabulary)))


def cases_for(template: str) -> list[dict[str, Any]]:
    """The conversations to render with ``template``: name, messages, kwargs, add_generation_prompt."""
    conversations = dict(CASES)
    if "think" in template:
        conversations["thinking"] = [ASK, THINKING, AGAIN]
    switches: list[dict[str, Any]] = [{}]
    if "enable_thinking" in template:
        switches = [{"enable_thinking": True}, {"enable_thinking": False}]
    return [
        {
            "name": name if not kwargs else f"{name}, {kwargs}",
            "messages": messages,
            "kwargs": kwargs,
            "add_generation_prompt": messages[-1]["role"] == "user",
        }
        for name, messages in conversations.items()
        for kwargs in switches
    ]
