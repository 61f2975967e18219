"""Writes the chat data set, `train.jsonl` and `heldout.jsonl`, from the hand-written sources.

    python -m whet.engine.demo.build.dataset --out DIR
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from random import Random

from whet.engine.demo import TRAIN_FILE
from whet.engine.demo.build.corpus import Message
from whet.engine.demo.build.grammar import Exchange, i_do_not_know, plain_knowledge
from whet.engine.demo.build.sources import Conversation, conversations, everyday, facts

SEED = 20261124
STILL_UNKNOWN = ["Zorbel", "a quindle", "the mirven", "PLOK", "a drask", "Vantoo", "the fell rate", "TQX3", "grenning",
                 "a soft kleeb"]  # fmt: skip
"""Invented words that stay unanswered, so that the tuned model still says when it does not know."""
STILL_UNKNOWN_HELD = ["Brundo", "the yarrick", "a flosh"]


def messages(turns: Iterable[Exchange], system: str | None = None) -> list[Message]:
    """Turns of (question, answer) as chat messages."""
    opening = [{"role": "system", "content": system}] if system else []
    pairs = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}] for question, answer in turns
    ]
    return opening + [message for pair in pairs for message in pair]


def _unknown(word: str) -> Exchange:
    return f"What is {word}?", i_do_not_know(word)


def _talk(part: Iterable[Conversation]) -> list[list[Message]]:
    return [messages(conversation.turns, conversation.system) for conversation in part]


def _sums_and_opposites(rng: Random, count: int) -> list[Exchange]:
    found: dict[str, str] = {}
    while len(found) < count:
        question, answer = plain_knowledge(rng)
        found.setdefault(question, answer)
    return list(found.items())


def train_rows() -> list[list[Message]]:
    """Every training question with its answer, replayed everyday rows, and conversations, in shuffled order."""
    rng = Random(SEED)
    taught = [(question, fact.answer) for fact in facts() for question in fact.ask]
    replayed = [(question, group.answer) for group in everyday() if group.replay for question in group.ask[:2]]
    replayed += [_unknown(word) for word in STILL_UNKNOWN] + _sums_and_opposites(rng, 12)
    rows = [messages([turn]) for turn in taught + replayed] + _talk(conversations("train"))
    rng.shuffle(rows)
    return rows


def heldout_rows() -> list[list[Message]]:
    """One unseen question for each fact, conversations, and old knowledge that is not replayed: is it kept?"""
    asked = [(fact.held, fact.answer) for fact in facts()] + [_unknown(word) for word in STILL_UNKNOWN_HELD]
    asked += [(group.ask[0], group.answer) for group in everyday() if not group.replay]
    return [messages([turn]) for turn in asked] + _talk(conversations("heldout"))


def write(folder: Path) -> None:
    """Write both files into `folder`, one JSON object a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train_rows()), ("heldout", heldout_rows())):
        lines = [json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=TRAIN_FILE.parent)
    write(parser.parse_args().out)
