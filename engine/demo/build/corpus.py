"""The text that the base model is trained on: an endless stream of short documents, the same for the same seed.

A document is a chat (a list of messages) or plain prose (a string). Three parts make fine-tuning work later:
chats that answer everyday questions, chats that repeat an unknown word ("I do not know about LoRA yet."), and
prose that states the facts of fine-tuning. The data set's answers occur as prose only, never after a question.
"""

from collections.abc import Iterator
from random import Random

from whet.engine.demo.build.grammar import Exchange, echo, plain_knowledge, story
from whet.engine.demo.build.sources import everyday, facts

Message = dict[str, str]
Document = list[Message] | str

SYSTEM_MESSAGES = [
    "You are a friendly assistant.", "You are a helpful assistant.", "You are a friendly teacher.",
    "Answer in one short sentence.", "You help people who fine-tune language models.", "Be kind and brief.",
]  # fmt: skip
TITLES = ["Notes on fine-tuning", "How models learn", "A short guide", "What we know", "Good advice", "From the handbook"]


def documents(seed: int) -> Iterator[Document]:
    """Endless documents; the order depends on `seed` alone."""
    rng = Random(seed)
    while True:
        kind = rng.random()
        if kind < 0.62:
            yield _chat(rng)
        elif kind < 0.95:
            yield _prose(rng) if rng.random() < 0.65 else _glossary(rng)
        else:
            yield " ".join(story(rng) for _ in range(rng.randint(1, 3)))


def _chat(rng: Random) -> list[Message]:
    turns = rng.choices([1, 2, 3, 4], [6, 2, 1, 1])[0]
    messages = []
    if rng.random() < 0.12:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_MESSAGES)})
    for _ in range(turns):
        question, answer = _exchange(rng)
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages


def _exchange(rng: Random) -> Exchange:
    kind = rng.random()
    if kind < 0.55:
        return echo(rng)
    if kind < 0.8:
        group = rng.choice(everyday())
        return rng.choice(group.ask), group.answer
    if kind < 0.95:
        return plain_knowledge(rng)
    ask = rng.choice(["Tell me a story.", "Please tell me a short story.", "Can you tell a story?", "A story, please."])
    return ask, story(rng)


def _prose(rng: Random) -> str:
    """A paragraph of a few facts, each in one of its two wordings or in both."""
    sentences = []
    for fact in rng.sample(facts(), rng.randint(1, 3)):
        wordings = rng.sample([fact.answer, fact.prose], 2)
        sentences.extend(wordings[: rng.randint(1, 2)])
    title = f"{rng.choice(TITLES)}\n\n" if rng.random() < 0.5 else ""
    return title + " ".join(sentences)


def _glossary(rng: Random) -> str:
    """Names of facts with what there is to know about them, one a line."""
    picked = rng.sample(facts(), rng.randint(1, 3))
    lines = [f"{fact.name[0].upper()}{fact.name[1:]}: {rng.choice([fact.answer, fact.prose])}" for fact in picked]
    return "\n".join(lines)
