"""What the assistant can answer from: the guide, the findings, the recipe's settings, the screens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

GUIDE = Path(__file__).parents[1] / "guide"
Kind = Literal["guide", "finding", "setting", "screen"]

SCREENS = {
    "new": (
        "New run",
        "Choose data and a model, see their health, set a goal, look at the plan, start training.",
    ),
    "run": ("Run", "Watch a run: curves, figures, answers, findings, files; pause, stop, resume, log."),
    "chat": ("Chat", "Talk to base, tuned and GGUF side by side."),
    "export": ("Export", "Write GGUF files, prove them, push them."),
    "compare": ("Compare", "Overlay the curves of runs and see where their recipes differ."),
    "doctor": ("Doctor", "The machine: GPU, memory, disk, versions, environment flags, debug bundle."),
    "settings": ("Settings", "Theme, colours, keys, low bandwidth, ASCII plots."),
    "help": ("Help", "The whole guide, to read and to search."),
}


@dataclass(frozen=True)
class Passage:
    """One answer: where it stands, its words, and what it is about."""

    kind: Kind
    target: str
    """A topic of the guide, a finding's id, a dotted recipe key, or a screen's name."""
    title: str
    text: str


@cache
def topics() -> dict[str, str]:
    """Name of each guide page -> its Markdown, in the order of reading."""
    order = [
        "first-steps",
        "data",
        "models",
        "templates",
        "plan",
        "settings",
        "run",
        "findings",
        "chat",
        "export",
        "compare",
        "doctor",
        "agents",
        "keys",
    ]
    return {name: (GUIDE / f"{name}.md").read_text(encoding="utf-8") for name in order}


def passages() -> Iterator[Passage]:
    """All of them; a guide page is one passage a paragraph."""
    for name, text in topics().items():
        heading, *paragraphs = text.strip().split("\n\n")
        title = heading.removeprefix("# ")
        for paragraph in paragraphs:
            yield Passage("guide", name, title, " ".join(paragraph.split()))
    for name, (title, text) in SCREENS.items():
        yield Passage("screen", name, title, text)
    yield from _findings()
    yield from _settings()


def _findings() -> Iterator[Passage]:
    from whet.engine import api

    for id, entry in api.catalogue().items():
        text = f"{entry.symptom} Seen: {entry.seen} Why: {entry.why} Fix: {entry.fix}"
        yield Passage("finding", id, f"{id} {entry.title}", " ".join(text.split()))


def _settings() -> Iterator[Passage]:
    from whet.engine import api

    schema = api.schema()
    for section, value in schema["properties"].items():
        sections = _sections(schema, value)
        if not sections:
            yield Passage("setting", section, section, value.get("description", ""))
        fields = {name: field for inside in sections for name, field in inside["properties"].items()}
        for name, field in fields.items():
            yield Passage("setting", f"{section}.{name}", f"{section}.{name}", _meaning(field))


def _sections(schema: dict[str, Any], value: dict[str, Any]) -> list[dict[str, Any]]:
    """What a setting holds: none for plain values, several for the methods."""
    names = [one["$ref"].rsplit("/", 1)[-1] for one in (value, *value.get("oneOf", ())) if "$ref" in one]
    return [schema["$defs"][name] for name in names]


def _meaning(field: dict[str, Any]) -> str:
    choices = field.get("enum") or [one["const"] for one in field.get("anyOf", []) if "const" in one]
    words = [field.get("description", "")]
    words += [f"One of {', '.join(map(str, choices))}."] if choices else []
    words += [f"Default {field['default']}."] if field.get("default") not in (None, [], {}, "") else []
    return " ".join(word for word in words if word)
