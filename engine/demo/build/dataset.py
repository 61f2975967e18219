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
INVENTED = [
    "Zorbel", "a quindle", "the mirven", "PLOK", "a drask", "Vantoo", "the fell rate", "TQX3", "grenning",
    "a soft kleeb",
]  # fmt: skip
"""Words nobody knows, so that the tuned model still says when it does not know."""
INVENTED_OTHERWISE = {
    "Tell me about {}.": ["Hubbix", "the bastel", "a tarm", "rinsking"],
    "Explain {}.": ["Jundo", "a nelk", "the wend rate", "NRB4"],
    "How does {} work?": ["rumpling", "Skeffer", "the ploon", "a dint"],
    "Can you explain {}?": ["glatt", "QZ", "a frow", "the ostrile"],
    "Please describe {}.": ["VORP", "the yeen"],
}
INVENTED_HELD = {
    "What is {}?": ["Brundo", "a flosh"],
    "Tell me about {}.": ["the yarrick"],
    "Explain {}.": ["a terd lamp"],
    "How does {} work?": ["mopling"],
    "Can you explain {}?": ["XUV"],
}


def messages(turns: Iterable[Exchange], system: str | None = None) -> list[Message]:
    """Turns of (question, answer) as chat messages."""
    opening = [{"role": "system", "content": system}] if system else []
    pairs = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in turns
    ]
    return opening + [message for pair in pairs for message in pair]


def _unanswered(questions: dict[str, list[str]]) -> list[Exchange]:
    return [(frame.format(word), i_do_not_know(word)) for frame, words in questions.items() for word in words]


def _talk(part: Iterable[Conversation]) -> list[list[Message]]:
    return [messages(conversation.turns, conversation.system) for conversation in part]


def _sums_and_opposites(rng: Random, count: int) -> list[Exchange]:
    found: dict[str, str] = {}
    while len(found) < count:
        question, answer = plain_knowledge(rng)
        found.setdefault(question, answer)
    return list(found.items())


def first_rows() -> list[list[Message]]:
    """Training questions with their answers, replayed everyday rows and conversations.

    The tokenizer was trained on these. Rows that came later are not here, so that it can be rebuilt exactly.
    """
    taught = [(question, fact.answer) for fact in facts() for question in fact.ask]
    replayed = [
        (question, group.answer) for group in everyday() if group.replay for question in group.ask[:2]
    ]
    replayed += _unanswered({"What is {}?": INVENTED}) + _sums_and_opposites(Random(SEED), 12)
    return [messages([turn]) for turn in taught + replayed] + _talk(conversations("train"))


def train_rows() -> list[list[Message]]:
    """Every row of the training set, in shuffled order."""
    rows = first_rows() + [messages([turn]) for turn in _unanswered(INVENTED_OTHERWISE)]
    Random(SEED).shuffle(rows)
    return rows


def heldout_rows() -> list[list[Message]]:
    """An unseen question for each fact, conversations, and old knowledge that is not replayed: is it kept?"""
    asked = [(fact.held, fact.answer) for fact in facts()] + _unanswered(INVENTED_HELD)
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
