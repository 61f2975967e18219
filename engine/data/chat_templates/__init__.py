"""Chat templates by name: Jinja written here from each format's public documentation.

``{% generation %}`` encloses exactly what a model learns to write: the content of an assistant turn through
its end-of-turn token. So the supervised tokens follow from the template, not from a search for strings.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import WhetError

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class TemplateInfo:
    """Facts about one template; ``None`` for a token means the tokenizer's own eos token."""

    family: str
    """Which models it belongs to."""
    end_of_turn: str | None
    instruction_part: str
    response_part: str
    markers: tuple[str, ...] = ()
    """Texts that must be single special tokens of the vocabulary for the template to make sense."""
    file: str | None = None
    """Name of the Jinja file where two templates share one."""
    aliases: tuple[str, ...] = ()


_LLAMA_3: dict[str, Any] = {
    "family": "llama",
    "end_of_turn": "<|eot_id|>",
    "instruction_part": "<|start_header_id|>user<|end_header_id|>\n\n",
    "response_part": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "markers": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}
_CHATML: dict[str, Any] = {
    "end_of_turn": "<|im_end|>",
    "instruction_part": "<|im_start|>user\n",
    "response_part": "<|im_start|>assistant\n",
    "markers": ("<|im_start|>", "<|im_end|>"),
}
_GEMMA: dict[str, Any] = {
    "family": "gemma",
    "end_of_turn": "<end_of_turn>",
    "instruction_part": "<start_of_turn>user\n",
    "response_part": "<start_of_turn>model\n",
    "markers": ("<start_of_turn>", "<end_of_turn>"),
    "file": "gemma-3",
}

TEMPLATES: dict[str, TemplateInfo] = {
    "llama-3.1": TemplateInfo(**_LLAMA_3, aliases=("llama-3.2", "llama-3.3")),
    "llama-3": TemplateInfo(**_LLAMA_3),
    "llama-2": TemplateInfo("llama", None, "[INST]", "[/INST]"),
    "chatml": TemplateInfo("chatml", **_CHATML, aliases=("chat-ml", "im-start")),
    "mistral": TemplateInfo("mistral", None, "[INST]", "[/INST]", aliases=("mistral-instruct", "mistral-v3")),
    "gemma": TemplateInfo(**_GEMMA, aliases=("gemma-1",)),
    "gemma-2": TemplateInfo(**_GEMMA),
    "gemma-3": TemplateInfo(**_GEMMA, aliases=("gemma-3n",)),
    "qwen-2.5": TemplateInfo("qwen2", **_CHATML, aliases=("qwen-2",)),
    "qwen-3": TemplateInfo("qwen3", **_CHATML),
    "phi-3": TemplateInfo(
        "phi3",
        "<|end|>",
        "<|user|>\n",
        "<|assistant|>\n",
        ("<|user|>", "<|assistant|>", "<|end|>"),
        aliases=("phi-3.5",),
    ),
    "phi-4": TemplateInfo(
        "phi3",
        "<|im_end|>",
        "<|im_start|>user<|im_sep|>",
        "<|im_start|>assistant<|im_sep|>",
        ("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    ),
    "alpaca": TemplateInfo("plain text", None, "### Instruction:\n", "### Response:\n"),
    "vicuna": TemplateInfo("plain text", None, "USER: ", "ASSISTANT:"),
    "zephyr": TemplateInfo("plain text", None, "<|user|>\n", "<|assistant|>\n"),
    "unsloth": TemplateInfo("plain text", None, ">>> User: ", ">>> Assistant: "),
}


@dataclass(frozen=True)
class ChatTemplate:
    """A template of ours, found by name."""

    name: str
    info: TemplateInfo

    @cached_property
    def source(self) -> str:
        """The Jinja text, generation tags included."""
        return (_HERE / f"{self.info.file or self.name}.jinja").read_text(encoding="utf-8")

    @property
    def family(self) -> str:
        return self.info.family

    @property
    def end_of_turn(self) -> str | None:
        return self.info.end_of_turn

    @property
    def instruction_part(self) -> str:
        return self.info.instruction_part

    @property
    def response_part(self) -> str:
        return self.info.response_part


def find(name: str) -> ChatTemplate:
    """A template by name or usual spelling: case, dots, dashes, underscores and spaces do not matter.

    Raises:
        WhetError: ``template.unknown``, naming the nearest names.
    """
    key = _folded(name)
    if key in _BY_SPELLING:
        known = _BY_SPELLING[key]
        return ChatTemplate(known, TEMPLATES[known])
    near = difflib.get_close_matches(key, _BY_SPELLING, n=3, cutoff=0.5)
    names = list(dict.fromkeys(_BY_SPELLING[one] for one in near))
    guess = f"Did you mean {' or '.join(names)}? " if names else ""
    raise WhetError(
        "template.unknown",
        f"There is no chat template named {name!r}.",
        f"{guess}Known names: {', '.join(TEMPLATES)}.",
    )


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_BY_SPELLING = {
    _folded(spelling): name
    for name, info in TEMPLATES.items()
    for spelling in (name, *info.aliases, f"{name}-instruct")
}
