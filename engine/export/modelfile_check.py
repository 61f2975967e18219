"""Read a Modelfile as Ollama does, hold it against tokenizer and chat template, write it checked. Light."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.chat_templates.renderer import Renderer
from ..data.tokenizer_files import TokenizerFiles
from ..errors import WhetError
from ..models.sentence_folder import is_embedding_model
from .go_template import GoTemplateError
from .modelfile import chat_renderer, end_texts, write_modelfile
from .ollama_chat import GoChat, NotExpressible, conversations
from .smoke_cases import ASK, CASES

COMMAND = re.compile(r"\s*([A-Za-z]+)[ \t](.*)", re.S)
STOP = re.compile(r"stop\s+(.*)", re.I | re.S)
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


def read_modelfile(path: Path) -> Modelfile:
    """What a file says, see :func:`parse_modelfile`. Raises WhetError ``modelfile.unreadable``."""
    try:
        return parse_modelfile(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise WhetError(
            "modelfile.unreadable", f"{path} cannot be read as text: {error}", "Write it again, in UTF-8."
        ) from error


def parse_modelfile(text: str) -> Modelfile:
    """The last FROM, TEMPLATE and SYSTEM of a Modelfile and all its stops, as Ollama takes them."""
    source, template, system, stops = "", None, "", []
    for command, value in _commands(text):
        match command:
            case "FROM":
                source = _unquoted(value) or ""
            case "TEMPLATE":
                template = _unquoted(value)
            case "SYSTEM":
                system = _unquoted(value) or ""
            case "PARAMETER" if stop := STOP.fullmatch(value):
                stops.append(_unquoted(stop[1]) or "")
    return Modelfile(source, template, system, tuple(dict.fromkeys(stops)))


def _commands(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction and its value, quotes included. A value that began with quotes goes on over lines
    until one ends with them."""
    lines = iter(text.replace("\r\n", "\n").split("\n"))
    for line in lines:
        match = COMMAND.fullmatch(line)
        if match is None:
            continue  # empty, or a comment
        command, value = match[1].upper(), match[2].lstrip()
        open_part = STOP.fullmatch(value) if command == "PARAMETER" else None
        quoted = open_part[1] if open_part else value
        # Blank lines and the spaces at the ends of lines belong to the value.
        while _unquoted(quoted.rstrip()) is None and (more := next(lines, None)) is not None:
            quoted = f"{quoted}\n{more}"
        quoted = quoted.rstrip()
        yield command, f"stop {quoted}" if open_part else quoted


def inspect_modelfile(path: Path, tokenizer_dir: Path, notes: Sequence[str] = ()) -> ModelfileFacts:
    """What ``path`` says, against the tokenizer and chat template in ``tokenizer_dir``.

    Args:
        path: of the Modelfile; files it names are looked for beside it.
        tokenizer_dir: folder of the trained model or adapter.
        notes: of its writer, carried along.
    """
    found = read_modelfile(path)
    files = TokenizerFiles.read(tokenizer_dir)
    embeds = is_embedding_model(tokenizer_dir)
    renderer = None if embeds else chat_renderer(files)
    ends = () if embeds else end_texts(files, renderer)
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

    ``base`` gives the settings that ``model_dir`` (an adapter) has none of: sampling, context length.
    """
    places = [model_dir, *([base] if base else [])]
    config = _first_json(places, "config.json")
    context = config.get("text_config", config).get("max_position_embeddings")
    generation = _first_json(places, "generation_config.json")
    written = write_modelfile(folder / "Modelfile", gguf_name, model_dir, generation, context)
    if written.path is None:
        return ModelfileFacts(notes=tuple(written.notes))
    return inspect_modelfile(written.path, model_dir, written.notes)


def _first_json(folders: Sequence[Path], name: str) -> dict[str, Any]:
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    return json.loads(path.read_text(encoding="utf-8")) if path else {}


def _is_path(source: str) -> bool:
    """FROM names a file beside it, or a model of Ollama's library."""
    return source.endswith(".gguf") or source.startswith((".", "/"))


def _difference(found: Modelfile, renderer: Renderer) -> dict[str, Any] | None:
    """The first conversation with another prompt; None when all are alike."""
    if found.template is None:
        return {"template": "none: Ollama guesses one from the GGUF's, or sends the bare prompt"}
    chat = GoChat(found.template.partition(ANSWER_PLACE)[0], found.system)
    whole = ".Messages" in chat.template
    for talk in conversations(renderer, chat):
        if not whole and len(talk.messages) > 2:
            continue  # Ollama renders such a template turn by turn
        try:
            wanted, given = talk.wanted(renderer), talk.given(chat)
        except (WhetError, NotExpressible):
            continue  # the chat template has no such conversations
        if given != wanted:
            return {"conversation": talk.messages, "modelfile": given, "chat_template": wanted}
    return None


def _unquoted(value: str) -> str | None:
    """What stands between the quotes, in which nothing is escaped; None while they are open."""
    for mark in ('"""', '"'):
        if value.startswith(mark):
            closed = value.endswith(mark) and len(value) >= 2 * len(mark)
            return value[len(mark) : -len(mark)] if closed else None
    return value
