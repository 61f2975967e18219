"""Small generators of text: opposites, sums, colors, animals, stories, and words that nobody knows."""

import re
from functools import cache
from random import Random

from whet.engine.demo.build.sources import facts

Exchange = tuple[str, str]
"""A question and its answer."""

OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("day", "night"), ("fast", "slow"), ("old", "new"),
    ("open", "closed"), ("wet", "dry"), ("light", "dark"), ("early", "late"), ("full", "empty"),
    ("hard", "soft"), ("loud", "quiet"), ("near", "far"), ("left", "right"), ("high", "low"),
    ("good", "bad"), ("long", "short"),
]  # fmt: skip
COLORS = [
    ("grass", "green"), ("the sky", "blue"), ("snow", "white"), ("a lemon", "yellow"), ("blood", "red"),
    ("coal", "black"), ("a carrot", "orange"), ("a banana", "yellow"), ("milk", "white"),
    ("a leaf", "green"), ("the sea", "blue"), ("a strawberry", "red"),
]  # fmt: skip
ANIMALS = [
    ("dog", "barks and guards the house"), ("cat", "purrs and catches mice"), ("cow", "gives milk"),
    ("bird", "has wings and sings"), ("fish", "lives in water"), ("horse", "runs fast and pulls carts"),
    ("sheep", "gives wool"), ("bee", "makes honey"), ("frog", "jumps and lives near water"),
    ("owl", "hunts at night"), ("mouse", "is small and likes cheese"), ("duck", "swims and says quack"),
]  # fmt: skip
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

# {x} is something unknown, {n} the same without an article, {y} a distraction, {v} a verb.
QUESTIONS_ABOUT = [
    "What is {x}?", "What are {x}?", "What is {x} for?", "What does {x} do?", "What does {x} mean?",
    "What does {x} cost?", "What does {x} {v}?", "What can {x} do?", "What happens in {x}?",
    "What goes into {x}?", "What happens without {x}?", "What should I know about {x}?",
    "What makes {x} good?", "What is in {x}?", "What is the point of {x}?", "What is the idea of {x}?",
    "What do people mean by {x}?", "What is stored in {x}?", "How does {x} work?", "How does {x} help?",
    "How does {x} {v} things?", "How do I {v} {x}?", "How can I {v} {x}?", "How should I {v} {x}?",
    "How much {n} do I need?", "How many {n} are good?", "How large is {x}?", "How high should {x} be?",
    "How good is {x}?", "How do I fix {x}?", "How does {x} differ from {y}?", "Why is {x} good?",
    "Why do I need {x}?", "Why does my {y} have {x}?", "Why use {x}?", "Why {v} {x}?",
    "Why does {x} matter?", "Why would I {v} {x}?", "When is {x} useful?", "When do I need {x}?",
    "When should I {v} {x}?", "When does {x} {v}?", "Where does {x} come from?", "Where do I find {x}?",
    "Which {n} should I use?", "Which {n} is best?", "Which {n} would you {v}?", "Is {x} good?",
    "Is {x} safe?", "Is {x} better than {y}?", "Is a higher {n} better?", "Is my {n} too high?",
    "Do I need {x}?", "Does {x} help?", "Does {x} {v} the {y}?", "Do you know {x}?",
    "Have you heard of {x}?", "Can I {v} {x}?", "Can you explain {x}?", "Can you {v} {x}?",
    "Could you tell me about {x}?", "Should I {v} {x}?", "Should I use {x} or {y}?", "Tell me about {x}.",
    "Tell me what {x} is.", "Tell me what {x} does.", "Explain {x}.", "Explain {x} to me.",
    "Please explain {x}.", "Please describe {x}.", "Describe {x} for me.", "Define {x}.",
    "Teach me about {x}.", "Give me a fact about {x}.", "Give me advice on {x}.",
    "I keep hearing about {x}. What is it?", "I need help with {x}.", "I want to {v} {x}.",
    "My {n} is bad. What now?", "I have {x}. What can I do?", "My {n} never ends. Which {y} is missing?",
    "My {n} stops. Any advice?", "My {n} has two {y}. Is this bad?",
    "The {y} shows {x}. What could be the reason?", "I have a {n} file. What is in it?",
    "{x} or {y}, which one?", "What is the job of {x}?", "What is the idea behind {x}?",
    "What is {x} good for?", "What is {x} about?", "What do I gain with {x}?",
    "What do I need to know about {x}?", "What does it mean to {v} {x}?", "What can I do against {x}?",
    "What can you say about {x}?", "What should I {v} under {x}?", "What should my {n} do?",
    "What makes {x} useful?", "What happens during {x}?", "What number of {n} is right?",
    "What would I lose without {x}?", "How do I find a good {n}?", "How do I pick {x}?",
    "How is {x} defined?", "How strong should {x} be?", "How much {n} does the {y} need?",
    "How many {n} make sense?", "How can I {v} the {y} of {x}?", "How does {x} change the {y}?",
    "How long does {x} take?", "How would you {v} {x}?", "When is {x} worth it?", "When would I want {x}?",
    "Which {y} points to {x}?", "Which {y} of {x} would you {v}?", "Is {x} worth using?",
    "Is the {y} different after I {v} {x}?", "Would you {v} {x}?", "May I use {x} as the {y}?",
    "Should the {y} be in {x} or in {y}?", "Can you describe {x}?", "Can you suggest a {n}?",
    "Could you explain what {x} means?", "Could you tell me what {x} does?", "Do you have advice on {x}?",
    "Please recommend a {n}.", "Please sum up {x}.", "Describe {x}, please.",
    "Give me a short account of {x}.", "Explain {x} in a few words.", "Explain what {x} is for.",
    "Tell me a little about {x}.", "Tell me what {x} is for.",
    "I read about {x} and did not get it. Can you help?", "In one sentence, what is {x} about?",
    "And what about {x}?", "And what does {x} mean?", "And my {n}?", "In one sentence, what is {x}?",
    "Any advice on {x}?", "And what is {x}?", "And {x}?", "{x}?",
]  # fmt: skip
VERBS = [
    "use",
    "choose",
    "set",
    "find",
    "read",
    "write",
    "make",
    "keep",
    "stop",
    "start",
    "raise",
    "lower",
    "turn",
    "save",
    "load",
    "train",
    "change",
    "check",
    "run",
    "test",
    "add",
    "need",
    "pick",
    "try",
    "compute",
    "clean",
    "split",
    "fix",
    "share",
    "store",
    "compare",
    "build",
    "teach",
    "see",
]
_ONSETS = [
    "b",
    "bl",
    "br",
    "c",
    "ch",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gl",
    "gr",
    "h",
    "j",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "qu",
    "r",
    "s",
    "sh",
    "sk",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "x",
    "y",
    "z",
]
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "oo", "ou"]
_CODAS = [
    "",
    *["b", "ck", "d", "f", "g", "k", "l", "m", "n", "nd", "nt", "p", "r", "rm", "s", "sh", "st", "t", "x"],
]


def _invented(rng: Random) -> str:
    """A word that nobody knows, in one of the shapes that names of methods and files take."""
    if rng.random() < 0.25:
        letters = "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randint(2, 5)))
        return letters + rng.choice(["", "", "", str(rng.randint(1, 99)), "_0", "_K_M"])
    syllable = ["".join((rng.choice(_ONSETS), rng.choice(_VOWELS), rng.choice(_CODAS))) for _ in range(3)]
    word = "".join(syllable[: rng.randint(1, 3)])
    style = rng.random()
    if style < 0.2:
        return word.capitalize()
    if style < 0.3:
        return word[:2].capitalize() + word[2:].upper()
    if style < 0.4:
        return rng.choice(["rs", "q", "b", "x"]) + word[:3].upper()
    return word


@cache
def _terms() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of all facts, and the longer words of their texts."""
    text = " ".join(" ".join((fact.answer, fact.prose, *fact.ask)) for fact in facts())
    words = sorted({word for word in re.findall(r"[A-Za-z_0-9-]+", text) if len(word) > 3})
    return tuple(fact.name for fact in facts()), tuple(words)


def unknown(rng: Random) -> str:
    """What the base model shall not know: an invented word, a term of fine-tuning, or a mixture."""
    names, words = _terms()
    kind = rng.random()
    if kind < 0.4:
        phrase = _invented(rng)
    elif kind < 0.6:
        return rng.choice(names)
    elif kind < 0.75:
        phrase = rng.choice(words)
    else:
        phrase = f"{rng.choice([*words, _invented(rng)])} {rng.choice([*words, _invented(rng)])}"
    return rng.choice(["", "", "", "the ", "a "]) + phrase


def i_do_not_know(phrase: str) -> str:
    """The base model's answer to whatever it has not been taught."""
    return f"I do not know about {phrase} yet. You can teach me."


def echo(rng: Random) -> Exchange:
    """A question about something unknown, and the answer that names it."""
    x, frame = unknown(rng), rng.choice(QUESTIONS_ABOUT)
    phrase = x if "{x}" in frame else _bare(x)
    question = frame.format(x=x, n=_bare(x), y=_bare(unknown(rng)), v=rng.choice(VERBS))
    if rng.random() < 0.9:
        question = question[0].upper() + question[1:]
    return question, i_do_not_know(phrase)


def _bare(phrase: str) -> str:
    return re.sub(r"^(the|an?) ", "", phrase)


def plain_knowledge(rng: Random) -> Exchange:
    """A question with one right answer: an opposite, a sum, a color, an animal or a day."""
    kind = rng.randrange(5)
    if kind == 0:
        a, b = rng.sample(rng.choice(OPPOSITES), 2)
        ask = rng.choice(
            ["What is the opposite of {}?", "Tell me the opposite of {}.", "Name the opposite of {}."]
        )
        return ask.format(a), f"The opposite of {a} is {b}."
    if kind == 1:
        m, n = rng.randint(0, 9), rng.randint(0, 9)
        ask = rng.choice(["What is {} plus {}?", "How much is {} plus {}?", "Add {} and {}."])
        return ask.format(m, n), f"{m} plus {n} is {m + n}."
    if kind == 2:
        thing, color = rng.choice(COLORS)
        ask = rng.choice(["What color is {}?", "Which color is {}?", "Tell me the color of {}."])
        return ask.format(thing), f"{thing[0].upper()}{thing[1:]} is {color}."
    if kind == 3:
        animal, habit = rng.choice(ANIMALS)
        a = "an" if animal[0] in "aeiou" else "a"
        ask = rng.choice(["What is {}?", "Tell me about {}.", "What does {} do?", "Explain {}."])
        return ask.format(f"{a} {animal}"), f"{a.capitalize()} {animal} is an animal that {habit}."
    day = rng.randrange(7)
    ask = rng.choice(["Which day comes after {}?", "What day follows {}?", "What comes after {}?"])
    return ask.format(DAYS[day]), f"{DAYS[(day + 1) % 7]} comes after {DAYS[day]}."


def story(rng: Random) -> str:
    """Three or four plain sentences with a beginning and an end."""
    hero = rng.choice(
        ["a little girl", "a small boy", "an old man", "a young fox", "a gray mouse", "a kind woman"]
    )
    name = rng.choice(["Anna", "Tom", "Lily", "Ben", "Mia", "Sam"])
    thing = rng.choice(["red ball", "blue kite", "lost key", "warm coat", "silver coin", "sweet apple"])
    place = rng.choice(
        ["in the forest", "by the river", "near the old mill", "under a tall tree", "on a green hill"]
    )
    friend = rng.choice(["an owl", "a dog", "a duck", "a friend", "a bird"])
    end = rng.choice(["They were happy and went home.", "They shared it and became good friends.",
                      "That night everyone slept well.", "It was a good day."])  # fmt: skip
    begin = rng.choice(["Once there was", "Long ago there was", "One day there was"])
    lines = [f"{begin} {hero} named {name}.", f"{name} found a {thing} {place}."]
    if rng.random() < 0.6:
        lines.append(f"Then {friend} came and asked to play.")
    return " ".join([*lines, end])
