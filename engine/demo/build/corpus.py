"""The text that the base model is trained on: short documents without end, the same for the same seed.

A document is a chat (a list of messages) or plain prose (a string). Three parts make fine-tuning work later:
chats that answer everyday questions, chats that repeat an unknown word ("I do not know about LoRA yet."), and
prose that states the facts of fine-tuning. The data set's answers occur as prose, never after a question.
"""

from collections.abc import Iterator
from random import Random

from whet.engine.demo.build.grammar import Exchange, echo, plain_knowledge, story
from whet.engine.demo.build.sources import Fact, everyday, facts

Message = dict[str, str]
Document = list[Message] | str

SYSTEM_MESSAGES = [
    "You are a friendly assistant.", "You are a helpful assistant.", "You are a friendly teacher.",
    "Answer in one short sentence.", "You help people who fine-tune language models.", "Be kind and brief.",
]  # fmt: skip
TITLES = ["Notes on fine-tuning", "How models learn", "A short guide", "What we know", "Good advice"]


def documents(seed: int) -> Iterator[Document]:
    """Endless documents; the order depends on `seed` alone."""
    rng = Random(seed)
    while True:
        kind = rng.random()
        if kind < 0.6:
            yield _chat(rng)
        elif kind < 0.72:
            yield _prose(rng)
        elif kind < 0.95:
            yield _handbook(rng)
        else:
            yield " ".join(story(rng) for _ in range(rng.randint(1, 3)))


def _chat(rng: Random) -> list[Message]:
    turns = rng.choices([1, 2, 3, 4], [6, 2, 1, 1])[0]
    messages: list[Message] = []
    if rng.random() < 0.12:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_MESSAGES)})
    for _ in range(turns):
        question, answer = _exchange(rng)
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages


def _exchange(rng: Random) -> Exchange:
    kind = rng.random()
    if kind < 0.5:
        return echo(rng)
    if kind < 0.7:
        group = rng.choice(everyday())
        return rng.choice(group.ask), group.answer
    if kind < 0.82:
        return plain_knowledge(rng)
    if kind < 0.86:
        ask = rng.choice(["Tell me a story.", "Please tell me a short story.", "Can you tell a story?"])
        return ask, story(rng)
    return _reading(rng)


def _reading(rng: Random) -> Exchange:
    """A sentence given by the user, to be repeated or named; it is never asked for."""
    fact = rng.choice(facts())
    sentence = _wording(rng, fact)
    if rng.random() < 0.5:
        return f"{rng.choice(['Repeat', 'Say', 'Read', 'Copy'])}: {sentence}", sentence
    ask = rng.choice(["What is this about: {}", "Which topic is this? {}", "Find the topic: {}"])
    return ask.format(sentence), f"This is about {fact.name}."


def _wording(rng: Random, fact: Fact) -> str:
    return fact.answer if rng.random() < 0.6 else fact.prose


def _prose(rng: Random) -> str:
    """A paragraph of a few facts, each in one of its two wordings or in both."""
    sentences: list[str] = []
    for fact in rng.sample(facts(), rng.randint(1, 3)):
        wordings = rng.sample([fact.answer, fact.prose], 2)
        sentences.extend(wordings[: rng.randint(1, 2)])
    title = f"{rng.choice(TITLES)}\n\n" if rng.random() < 0.5 else ""
    return title + " ".join(sentences)


def _handbook(rng: Random) -> str:
    """Facts under their names, one a line, as a glossary or a handbook puts them."""
    picked = rng.sample(facts(), rng.randint(1, 3))
    style = rng.choice(
        [
            "{}: {}",
            "{}. {}",
            "About {}. {}",
            "A word on {}: {}",
            "Notes about {}: {}",
            "What to know of {}: {}",
        ]
    )
    lines = [style.format(fact.name, _wording(rng, fact)) for fact in picked]
    return "\n".join(line[0].upper() + line[1:] for line in lines)
