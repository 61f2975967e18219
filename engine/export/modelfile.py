"""Ollama's Modelfile: a verified template, stops, system message and parameters, or a reason why not. Light.

Ollama guesses a template from a GGUF by edit distance to those it knows and otherwise sends the bare prompt,
so a fine-tuned model needs TEMPLATE and stops written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.chat_templates.renderer import Renderer
from ..data.tokenizer_files import TokenizerFiles
from ..errors import WhetError
from ..models.sentence_folder import is_embedding_model
from .files import write_text
from .go_chat import derive, trims
from .ollama_chat import NotExpressible, tags_of
from .smoke_cases import ASK, CASES

# generation_config.json -> Modelfile parameter.
PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}

LONGEST_CONTEXT = 8192
"""Most tokens of num_ctx: Ollama reserves memory for all of them."""


@dataclass
class ModelfileResult:
    """``path`` is None when no Modelfile was written; ``notes`` say why, or what it lacks."""

    path: Path | None
    notes: list[str] = field(default_factory=list)


def write_modelfile(
    out: Path,
    gguf_name: str,
    tokenizer_dir: Path,
    generation: Mapping[str, Any] | None = None,
    context_length: int | None = None,
) -> ModelfileResult:
    """Write ``out`` for the GGUF ``gguf_name`` in the same folder, whole or not at all.

    An embedding model's has FROM alone: Ollama knows from the GGUF how it pools, and there is nothing to ask.

    Args:
        out: path of the Modelfile.
        gguf_name: file name that FROM points to.
        tokenizer_dir: folder with the tokenizer's files, chat template included.
        generation: generation_config.json's settings; sampling ones become parameters, end tokens stops.
        context_length: the longest text the model takes, in tokens; num_ctx is that or 8,192.
    """
    lines = [f"FROM ./{gguf_name}"]
    if is_embedding_model(tokenizer_dir):
        return ModelfileResult(write_text(out, "\n".join(lines) + "\n"))
    files = TokenizerFiles.read(tokenizer_dir)
    notes: list[str] = []
    renderer = chat_renderer(files)
    try:
        lines += _template_lines(renderer, notes)
        stops = [*end_texts(files, renderer), *further_ends(files, renderer, generation or {})]
        lines += [f"PARAMETER stop {quoted(stop)}" for stop in dict.fromkeys(stops)]
    except NotExpressible as reason:
        return ModelfileResult(None, [f"No Modelfile was written: {reason}"])
    for name, parameter in PARAMETERS.items():
        value = (generation or {}).get(name)
        # Anything else, such as a text with further lines in it, comes from whoever made the model.
        if isinstance(value, int | float) and not isinstance(value, bool):
            lines.append(f"PARAMETER {parameter} {value}")
    if context_length is not None:
        lines.append(f"PARAMETER num_ctx {min(context_length, LONGEST_CONTEXT)}")
    return ModelfileResult(write_text(out, "\n".join(lines) + "\n"), notes)


def _template_lines(renderer: Renderer | None, notes: list[str]) -> list[str]:
    """TEMPLATE and SYSTEM; what they leave out goes into ``notes``. Raises :class:`NotExpressible`."""
    if renderer is None:
        notes.append("The model has no chat template: the Modelfile passes the bare prompt on.")
        return [f"TEMPLATE {block('{{ .Prompt }}')}"]
    chat = derive(renderer)
    if _writes_tools(renderer):
        notes.append("The Modelfile covers conversations; the chat template's tool calls are left out.")
    if trims(renderer):
        notes.append("The chat template trims spaces and lines around messages, which Ollama does not.")
    if tags_of(chat.template):
        notes.append(
            "Ollama tells thoughts apart from answers (its `think` switch), which early versions cannot."
        )
    if not chat.knows_system:
        notes.append("The chat template has no system messages; Ollama leaves them out without a word.")
    return [f"TEMPLATE {block(chat.template)}", *([f"SYSTEM {block(chat.system)}"] if chat.system else [])]


def chat_renderer(files: TokenizerFiles) -> Renderer | None:
    """The folder's chat template; None without one. Raises as :class:`Renderer`."""
    if files.chat_template is None:
        return None
    decoder = files.load().get_added_tokens_decoder()
    specials = [token.content for token in decoder.values() if token.special]
    return Renderer(files.chat_template, files.bos_token, files.eos_token, specials)


def end_texts(files: TokenizerFiles, renderer: Renderer | None) -> tuple[str, ...]:
    """The texts at which generation must stop: the end of a turn, then the end of a text."""
    turn = renderer.end_token if renderer is not None else None
    return tuple(dict.fromkeys(end for end in (turn, files.eos_token) if end))


def further_ends(
    files: TokenizerFiles, renderer: Renderer | None, generation: Mapping[str, Any]
) -> list[str]:
    """Other end tokens of the generation settings, but for those that the chat template writes within a
    conversation: some models name the header of the next turn there."""
    named = generation.get("eos_token_id")
    ids = named if isinstance(named, list) else [] if named is None else [named]
    if not ids:
        return []
    tokenizer, written = files.load(), _written(renderer)
    texts = [tokenizer.id_to_token(id) for id in ids]
    return [text for text in texts if text is not None and text not in written]


def _written(renderer: Renderer | None) -> str:
    """What the template writes in the midst of a conversation."""
    if renderer is None:
        return ""
    try:
        return renderer.render([ASK, CASES["answered"][1], ASK], add_generation_prompt=True)
    except WhetError:
        return ""


def _writes_tools(renderer: Renderer) -> bool:
    tool = {"type": "function", "function": {"name": "now", "description": "", "parameters": {}}}
    try:
        return renderer.render([ASK], tools=[tool]) != renderer.render([ASK])
    except WhetError:
        return False


def quoted(text: str) -> str:
    """As Ollama's reader takes it: between quotes, where no character escapes another."""
    return f'"{text}"' if "\n" not in text and not text.startswith('"') else block(text)


def block(text: str) -> str:
    """The same over several lines. Raises :class:`NotExpressible` for what no quotes hold."""
    if '"""' in text:
        raise NotExpressible("three quotes in a row cannot be written into a Modelfile.")
    return f'"""{text}"""'
