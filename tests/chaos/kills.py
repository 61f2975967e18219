"""Moments at which a worker gets a signal, drawn from a seed: by what it writes or says, or by the clock."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True)
class Kill:
    """One death of a worker.

    Args:
        place: what it is in the middle of.
        files: it dies at the ``count``-th file operation whose name matches.
        said: or when this text was in its events ``count`` times more.
        count: from 1 on.
        after: seconds from that moment, or from the start where there is neither.
        number: of a signal that comes from outside.
    """

    place: str
    files: str = ""
    said: str = ""
    count: int = 1
    after: float = 0.0
    number: int = signal.SIGKILL

    def request(self) -> dict[str, Any]:
        """What the nursery is told of it; a kill by words or by the clock comes from outside."""
        if not self.files:
            return {}
        return {"die": {"at": self.files, "count": self.count, "after": self.after}}


FILES = {
    "a checkpoint's writing": (r"checkpoints/step-\d+/", 16),
    "the removal of an old checkpoint": (r"(os.remove|rmtree|rmdir) .*checkpoints/step-\d+", 2),
    "the state's writing": (r"\.state\.json\.new", 8),
    "the trained weights' writing": (r"export/\.adapter\.partial", 6),
    "merging": (r"export/\..*merged", 6),
    "a GGUF's writing": (r"\.gguf", 6),
    "an export": (r"/export/", 20),
}
"""Place -> the operations there, and the last of them at which a worker may die."""
SAID = {
    "a training step": ('"type":"step"', 3, 0.04),
    "an evaluation": ('"phase":"eval"', 2, 0.03),
}
"""Place -> the words, how many of them at most, and seconds until the next."""
BEFORE = ("loading", "a training step", "an evaluation", "a checkpoint's writing", "a checkpoint's writing",
          "the removal of an old checkpoint", "the state's writing")  # fmt: skip
AFTER = ("the trained weights' writing", "merging", "a GGUF's writing", "a GGUF's writing", "an export")
LOADING_SECONDS = 0.4


def draw(random: Random, place: str) -> Kill:
    """A moment in a place."""
    if place in FILES:
        files, most = FILES[place]
        after = random.choice((0.0, random.uniform(0.0, 0.02)))
        return Kill(place, files=files, count=random.randint(1, most), after=after)
    if place in SAID:
        said, most, seconds = SAID[place]
        return Kill(place, said=said, count=random.randint(1, most), after=random.uniform(0.0, seconds))
    return Kill(place, after=random.uniform(0.0, LOADING_SECONDS))


def draw_run(random: Random, before: int = 5, after: int = 3) -> list[Kill]:
    """The deaths of one run: some before it has trained weights, some behind that."""
    places = [*random.sample(BEFORE, before), *sorted(random.sample(AFTER, after), key=AFTER.index)]
    return [draw(random, place) for place in places]
