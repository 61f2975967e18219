"""The code blocks of docs/serving*.md, and the options that their commands use."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLAGS = ROOT / "tests" / "docs" / "flags"
PAGES = (ROOT / "docs" / "serving.md", ROOT / "docs" / "serving_embeddings.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

LISTS = {
    "llama-server": "llama.cpp",
    "llama-cli": "llama.cpp",
    "llama-quantize": "llama-quantize",
    "convert_hf_to_gguf.py": "convert_hf_to_gguf",
    "convert_lora_to_gguf.py": "convert_lora_to_gguf",
    "vllm serve": "vllm",
    "sglang.launch_server": "sglang",
    "text-embeddings-router": "text-embeddings-inference",
    "docker run": "docker",
    "ollama create": "ollama",
    "ollama run": "ollama",
    "ollama show": "ollama",
    "lms import": "lms",
    "lms load": "lms",
    "lms server": "lms",
}
"""Program -> its list in ``flags/``."""
PLAIN = {"cd", "curl", "git", "pip", "cmake"}
"""Programs everybody has, whose options are not looked up."""
EMBEDDINGS_IMAGE = "text-embeddings-inference"


@dataclass(frozen=True)
class Block:
    """One block of a page, and the line it begins at."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str) -> list[Block]:
    """All blocks of a language."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            if match[1] == language:
                line = text.count("\n", 0, match.start()) + 2
                found.append(Block(page.name, line, language, match[2]))
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """Its commands as a shell splits them; a quoted text may go over lines."""
    pending = ""
    for line in block.text.splitlines():
        pending += line.removesuffix("\\") if line.endswith("\\") else f"{line}\n"
        if line.endswith("\\"):
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation that is still open
            continue
        pending = ""
        if words:
            yield words
    assert not pending.strip(), f"{block} ends within a quotation"


def uses(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """A command as pairs of a program and its options; a container's command is a program of its own."""
    name = words[0].rpartition("/")[2]
    if name.startswith("python") and words[1] == "-m":
        yield words[2], words[3:]
    elif name.startswith("python"):
        yield words[1].rpartition("/")[2], words[2:]
    elif name == "docker":
        image = next(at for at, word in enumerate(words) if EMBEDDINGS_IMAGE in word)
        yield "docker run", words[2:image]
        yield "text-embeddings-router", words[image + 1 :]
    elif name in ("vllm", "ollama", "lms"):
        yield f"{name} {words[1]}", words[2:]
    else:
        yield name, words[1:]


def options(words: list[str]) -> list[str]:
    """The words that are options, without their values; `-- ` values such as JSON do not begin like one."""
    return [word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)]


def known(name: str) -> set[str]:
    """A committed list; its first line says of which version."""
    first, *rest = (FLAGS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    assert first.startswith("# "), name
    return set(rest)
