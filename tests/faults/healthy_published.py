"""Templates as models are published with them: the copies that the installed TRL brings along."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from faults.harness import Healthy, Looked
from faults.healthy_rows import chat, family, jsonl, thought
from support import healthy_models as make

_TRL = find_spec("trl")
assert _TRL is not None and _TRL.origin is not None
FOLDER = Path(_TRL.origin).parent / "chat_templates"
"""Other versions have other files; those that are missing are left out."""
THOUGHTS = jsonl(lambda number, question, answer: chat(question, thought(number, answer)))

# File without suffix -> family, and rows it takes.
PUBLISHED: dict[str, tuple[str, make.Data]] = {
    "llama3": ("llama", make.messages),
    "llama3_1": ("llama", make.with_system),
    "llama3_2": ("llama", make.sharegpt),
    "qwen2_5": ("qwen2", make.with_system),
    "qwen3": ("qwen3", THOUGHTS),
    "qwen3_instruct_2507": ("qwen3", make.alpaca),
    "gemma": ("gemma", make.messages),
    "gemma3": ("gemma3", make.with_system),
    "phi3": ("mistral", make.messages),
    "phi3_5": ("mistral", make.with_system),
    "lfm2": ("llama", make.alpaca),
    "gptoss": ("llama", make.messages),
    "cohere2": ("llama", THOUGHTS),
    "gemma4": ("gemma3", make.messages),
}


def published(name: str, kind: str, data: make.Data) -> Callable[[Path], Looked]:
    def look(folder: Path) -> Looked:
        text = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
        return family(kind, text, data)(folder)

    return look


AS_PUBLISHED = tuple(
    Healthy(f"{name}'s template as published", published(name, kind, data))
    for name, (kind, data) in PUBLISHED.items()
    if (FOLDER / f"{name}.jinja").is_file()
)
