"""Ollama's Modelfile: its Go template derived from the chat template, verified, or not written at all. Light.

Ollama guesses a template from a GGUF by edit distance to those it knows and otherwise sends the bare prompt,
so a fine-tuned model needs TEMPLATE and stops written down. The Go template is derived by rendering the Jinja
template with sentinel strings for the messages and cutting the text around them; then both are rendered on
other conversations and must agree. BOS is left to the GGUF, which llama.cpp adds by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.chat_templates.renderer import Renderer
from ..data.tokenizer_files import TokenizerFiles
from ..errors import WhetError
from .files import write_text
from .go_template import render
from .smoke_cases import ASK, CASES, THINKING

USER, ANSWER, LATER, SYSTEM = "Zquserz", "Zqanswerz", "Zqlaterz", "Zqsystemz"
"""Sentinels: no template writes or trims them."""

# generation_config.json -> Modelfile parameter.
PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}

Message = dict[str, str]


class NotExpressible(Exception):
    """The template cannot be written in Go without being wrong somewhere; the message says why."""


@dataclass
class ModelfileResult:
    """``path`` is None when no Modelfile was written; ``notes`` say why, or what it lacks."""

    path: Path | None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class GoChat:
    """A chat format as Ollama takes it."""

    template: str
    system: str
    """The template's default system message, or empty."""


def write_modelfile(
    out: Path,
    gguf_name: str,
    tokenizer_dir: Path,
    generation: Mapping[str, Any] | None = None,
    context_length: int | None = None,
) -> ModelfileResult:
    """Write ``out`` for the GGUF ``gguf_name`` in the same folder, whole or not at all.

    Args:
        out: path of the Modelfile.
        gguf_name: file name that FROM points to.
        tokenizer_dir: folder with the tokenizer's files, chat template included.
        generation: generation_config.json's settings; sampling ones become parameters.
        context_length: value of num_ctx, in tokens; Ollama's own default otherwise.
    """
    files = TokenizerFiles.read(tokenizer_dir)
    lines = [f"FROM ./{gguf_name}"]
    notes: list[str] = []
    renderer = chat_renderer(files)
    if renderer is None:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
        notes.append("The model has no chat template: the Modelfile passes the bare prompt on.")
    else:
        try:
            chat = derive(renderer)
        except NotExpressible as reason:
            return ModelfileResult(None, [f"No Modelfile was written: {reason}"])
        lines.append(f'TEMPLATE """{chat.template}"""')
        if chat.system:
            lines.append(f'SYSTEM """{chat.system}"""')
        if _writes_tools(renderer):
            notes.append("The Modelfile covers conversations; the chat template's tool calls are left out.")
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in end_texts(files, renderer)]
    for name, parameter in PARAMETERS.items():
        value = (generation or {}).get(name)
        if value is not None:
            lines.append(f"PARAMETER {parameter} {value}")
    if context_length is not None:
        lines.append(f"PARAMETER num_ctx {context_length}")
    return ModelfileResult(write_text(out, "\n".join(lines) + "\n"), notes)


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


def derive(renderer: Renderer) -> GoChat:
    """The Go template of a chat template. Raises :class:`NotExpressible`."""
    if "strftime_now" in renderer.source:
        raise NotExpressible("the chat template writes today's date, and a Modelfile would freeze it.")
    start, opening = _cut(_prompt(renderer, [_user(USER)]), USER)
    again, rest = _cut(_prompt(renderer, [_user(USER), _said(ANSWER), _user(LATER)]), USER)
    between, rest = _cut(rest, ANSWER)
    middle, later_opening = _cut(rest, LATER)
    if again != start or opening != later_opening or not between.startswith(opening):
        raise NotExpressible("the chat template writes a turn differently once another one follows it.")
    system = _system_part(renderer, start, middle)
    literals = [between, middle, start, system.before, system.after, system.default or ""]
    if any("{{" in text or "}}" in text or '"""' in text for text in literals):
        raise NotExpressible(
            "the chat template's own text contains braces or quotes that a Modelfile cannot hold."
        )
    # What an answer begins with beyond the generation prompt, such as the space after [/INST].
    chat = GoChat(_compose(system, opening, between.removeprefix(opening)), system.default or "")
    _verify(renderer, chat, system.known)
    return chat


def _writes_tools(renderer: Renderer) -> bool:
    tool = {"type": "function", "function": {"name": "now", "description": "", "parameters": {}}}
    try:
        return renderer.render([ASK], tools=[tool]) != renderer.render([ASK])
    except WhetError:
        return False


@dataclass(frozen=True)
class SystemPart:
    """How system message and user turn begin."""

    user_start: str
    answer_end: str
    before: str = ""
    after: str = ""
    inside_user: bool = False
    """The system message stands inside the first user turn."""
    default: str | None = None
    """What the template writes for a missing system message; None when it writes no system part then."""
    known: bool = True


def _system_part(renderer: Renderer, start: str, middle: str) -> SystemPart:
    """Split what stands before the first question (``start``) and between answer and question
    (``middle``)."""
    try:
        text = _prompt(renderer, [{"role": "system", "content": SYSTEM}, _user(USER)])
    except WhetError:
        text = ""
    if SYSTEM not in text:
        return SystemPart(start, _without_end(middle, start), known=False)
    head, rest = _cut(text, SYSTEM)
    tail, _ = _cut(rest, USER)
    if len(start) >= len(head) + len(tail) and start.startswith(head) and start.endswith(tail):
        answer = _cut(renderer.render([_user(USER), _said(ANSWER)]), ANSWER)[1]
        user_start = middle.removeprefix(answer)
        if not (middle.startswith(answer) and tail.endswith(user_start)):
            raise NotExpressible("the first user turn is written differently from the later ones.")
        default = start[len(head) : len(start) - len(tail)]
        return SystemPart(user_start, answer, head, _without_end(tail, user_start), default=default)
    answer_end = _without_end(middle, start)
    if tail.endswith(start):
        return SystemPart(start, answer_end, head, _without_end(tail, start))
    if head.startswith(start):
        return SystemPart(start, answer_end, head.removeprefix(start), tail, inside_user=True)
    raise NotExpressible("a system message changes how the user's turn is written.")


def _compose(part: SystemPart, opening: str, answer_start: str) -> str:
    """One line without trimming dashes; newlines of the format stay literal."""
    block = f"{part.before}{{{{ $.System }}}}{part.after}"
    outside = inside = ""
    if part.known and part.inside_user:
        inside = f"{{{{ if and $.System (eq $i 1) }}}}{block}{{{{ end }}}}"
    elif part.default is not None:
        outside = block
    elif part.known:
        outside = f"{{{{ if $.System }}}}{block}{{{{ end }}}}"
    return (
        f"{outside}{{{{ range $i, $m := .Messages }}}}"
        f'{{{{ if eq $m.Role "user" }}}}{part.user_start}{inside}{{{{ $m.Content }}}}{opening}'
        f'{{{{ else if eq $m.Role "assistant" }}}}{answer_start}{{{{ $m.Content }}}}{part.answer_end}'
        "{{ end }}{{ end }}"
    )


def _verify(renderer: Renderer, chat: GoChat, system_known: bool) -> None:
    """Both templates on conversations that were not used to derive one from the other."""
    conversations = [case for case in CASES.values() if case[-1]["role"] == "user"]
    conversations.append([ASK, CASES["answered"][1], ASK, CASES["answered"][1], ASK])
    if "think" in renderer.source:
        conversations.append([ASK, THINKING, ASK])
    for messages in conversations:
        has_system = messages[0]["role"] == "system"
        if has_system and not system_known:
            continue
        if _prompt(renderer, messages) != render_go(chat, messages):
            if THINKING in messages:
                raise NotExpressible("the chat template drops earlier thoughts, which a Modelfile cannot.")
            raise NotExpressible("the derived template gives another prompt than the chat template.")


def render_go(chat: GoChat, messages: Sequence[Message]) -> str:
    """The prompt as Ollama makes it: SYSTEM stands in for a missing system message."""
    if chat.system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": chat.system}, *messages]
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    turns = [{"Role": message["role"], "Content": message["content"]} for message in messages]
    last = {"Prompt": messages[-1]["content"], "Response": ""}
    return render(chat.template, {"System": system, "Messages": turns, **last})


def _prompt(renderer: Renderer, messages: Sequence[Message]) -> str:
    """The prompt without BOS, which llama.cpp adds."""
    try:
        text = renderer.render(messages, add_generation_prompt=True)
    except WhetError as error:
        if messages[0]["role"] == "system":
            raise
        raise NotExpressible(f"the chat template refuses a plain conversation: {error.message}") from error
    return text.removeprefix(renderer.bos_token or "")


def _cut(text: str, sentinel: str) -> tuple[str, str]:
    if text.count(sentinel) != 1:
        raise NotExpressible(f"the chat template writes a message {text.count(sentinel)} times.")
    before, _, after = text.partition(sentinel)
    return before, after


def _without_end(text: str, end: str) -> str:
    if not text.endswith(end):
        raise NotExpressible("the first user turn is written differently from the later ones.")
    return text.removesuffix(end)


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _said(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
