"""Reads the hand-written YAML beside this file: facts, everyday questions and conversations."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Fact:
    """One thing to know about fine-tuning."""

    name: str
    """How a sentence mentions it: `LoRA`, `the rank`."""
    answer: str
    prose: str
    """The same fact in other words, as a text would put it."""
    ask: tuple[str, ...]
    """Questions for the training set."""
    held: str
    """A question for the held-out set."""


@dataclass(frozen=True)
class Everyday:
    """Small talk and plain knowledge that the base model has before any fine-tuning."""

    answer: str
    ask: tuple[str, ...]
    replay: bool


@dataclass(frozen=True)
class Conversation:
    """Turns of (question, answer), perhaps under a system message."""

    turns: tuple[tuple[str, str], ...]
    system: str | None


def _read(name: str) -> Any:
    return yaml.safe_load((HERE / name).read_text(encoding="utf-8"))


@cache
def facts() -> tuple[Fact, ...]:
    """Every fact, in the order of the files' names."""
    rows = [row for path in sorted((HERE / "facts").glob("*.yaml")) for row in _read(f"facts/{path.name}")]
    return tuple(Fact(**{**row, "ask": tuple(row["ask"])}) for row in rows)


@cache
def everyday() -> tuple[Everyday, ...]:
    """Every group of everyday questions."""
    return tuple(
        Everyday(row["answer"], tuple(row["ask"]), row.get("replay", False)) for row in _read("everyday.yaml")
    )


@cache
def conversations(part: str) -> tuple[Conversation, ...]:
    """Conversations of `part`, `train` or `heldout`. Raises KeyError for a name that no answer has."""
    by_fact = {fact.name: fact.answer for fact in facts()}
    by_question = {question: group.answer for group in everyday() for question in group.ask}

    def answer(question: str, name: str) -> str:
        return by_question[question] if name == "-" else by_fact[name]

    return tuple(
        Conversation(
            tuple((question, answer(question, name)) for question, name in row["turns"]), row.get("system")
        )
        for row in _read("conversations.yaml")[part]
    )
