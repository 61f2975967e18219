"""Read a Modelfile as Ollama does, hold it against tokenizer and chat template, write it checked. Light."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.chat_templates.renderer import Renderer
from ..data.tokenizer_files import TokenizerFiles
from ..errors import WhetError
from .go_template import GoTemplateError
from .modelfile import GoChat, chat_renderer, end_texts, render_go, write_modelfile
from .smoke_cases import ASK, CASES, THINKING

COMMAND = re.compile(r'^\s*(FROM|TEMPLATE|SYSTEM|PARAMETER)\s+("""(.*?)"""|[^\n]*)', re.M | re.S | re.I)
STOP = re.compile(r"^stop\s+(.*)$", re.I)
ANSWER_PLACE = "{{ .Response"
"""What an older template writes after this belongs to the answer."""


@dataclass(frozen=True)
class Modelfile:
    """The instructions that decide what the model is asked and where it stops."""

    source: str
    template: str | None
    system: str
    stops: tuple[str, ...]


@dataclass(frozen=True)
class ModelfileFacts:
    """A Modelfile beside the model it is for; what the check X05 looks at.

    Args:
        path: None where none was written.
        notes: why none was written, or what it leaves out.
        stops: of its PARAMETER lines.
        ends: tokens that end a turn or a text of this model.
        headers: those stops that the chat template writes at other places.
        missing_source: what FROM names, where that is a file that is not there.
        difference: the first conversation on which TEMPLATE and chat template differ.
    """

    path: Path | None = None
    notes: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    missing_source: str | None = None
    difference: dict[str, Any] | None = None


def parse_modelfile(text: str) -> Modelfile:
    """The last FROM, TEMPLATE and SYSTEM of a Modelfile and all its stops, as Ollama takes them."""
    source, template, system, stops = "", None, "", []
    for match in COMMAND.finditer(text):
        value = match[3] if match[3] is not None else _unquoted(match[2].strip())
        match match[1].upper():
            case "FROM":
                source = value
            case "TEMPLATE":
                template = value
            case "SYSTEM":
                system = value
            case "PARAMETER" if stop := STOP.match(match[2].strip()):
                stops.append(_unquoted(stop[1].strip()))
    return Modelfile(source, template, system, tuple(dict.fromkeys(stops)))


def inspect_modelfile(path: Path, tokenizer_dir: Path, notes: Sequence[str] = ()) -> ModelfileFacts:
    """What ``path`` says, against the tokenizer and chat template in ``tokenizer_dir``.

    Args:
        path: of the Modelfile; files it names are looked for beside it.
        tokenizer_dir: folder of the trained model or adapter.
        notes: of its writer, carried along.
    """
    found = parse_modelfile(path.read_text(encoding="utf-8"))
    files = TokenizerFiles.read(tokenizer_dir)
    renderer = chat_renderer(files)
    ends = end_texts(files, renderer)
    missing = _is_path(found.source) and not (path.parent / found.source).is_file()
    difference: dict[str, Any] | None = None
    headers: tuple[str, ...] = ()
    if renderer is not None:
        try:
            written = renderer.render([ASK, CASES["answered"][1], ASK], add_generation_prompt=True)
            headers = tuple(stop for stop in found.stops if stop not in ends and stop in written)
            difference = _difference(found, renderer)
        except (GoTemplateError, WhetError) as error:
            notes = [*notes, f"The Modelfile's TEMPLATE was not compared: {error}."]
    return ModelfileFacts(
        path=path,
        notes=tuple(notes),
        stops=found.stops,
        ends=ends,
        headers=headers,
        missing_source=found.source if missing else None,
        difference=difference,
    )


def write_checked_modelfile(
    folder: Path, gguf_name: str, model_dir: Path, base: Path | None = None
) -> ModelfileFacts:
    """``folder/Modelfile`` for a GGUF in it, read back and held against the tokenizer in ``model_dir``.

    ``base`` gives the sampling settings that ``model_dir`` (an adapter) has none of.
    """
    places = [model_dir / "generation_config.json", *([base / "generation_config.json"] if base else [])]
    settings = next((path for path in places if path.is_file()), None)
    generation = json.loads(settings.read_text(encoding="utf-8")) if settings else {}
    written = write_modelfile(folder / "Modelfile", gguf_name, model_dir, generation)
    if written.path is None:
        return ModelfileFacts(notes=tuple(written.notes))
    return inspect_modelfile(written.path, model_dir, written.notes)


def _is_path(source: str) -> bool:
    """FROM names a file beside it, or a model of Ollama's library."""
    return source.endswith(".gguf") or source.startswith((".", "/"))


def _difference(found: Modelfile, renderer: Renderer) -> dict[str, Any] | None:
    """The first conversation with another prompt; None when all are alike."""
    if found.template is None:
        return {"template": "none: Ollama guesses one from the GGUF's, or sends the bare prompt"}
    chat = GoChat(found.template.partition(ANSWER_PLACE)[0], found.system)
    whole = ".Messages" in chat.template
    cases = {name: case for name, case in CASES.items() if case[-1]["role"] == "user"}
    if "think" in renderer.source:
        cases["thinking"] = [ASK, THINKING, ASK]
    for name, messages in cases.items():
        if not whole and len(messages) > 2:
            continue  # Ollama renders such a template turn by turn
        try:
            wanted = renderer.render(messages, add_generation_prompt=True)
        except WhetError:
            continue  # the chat template has no such conversations
        wanted = wanted.removeprefix(renderer.bos_token or "")
        given = render_go(chat, messages)
        if given != wanted:
            return {"conversation": name, "modelfile": given, "chat_template": wanted}
    return None


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text
