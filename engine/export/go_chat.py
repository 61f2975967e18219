"""A chat template as Ollama's Go template: derived by rendering sentinels, verified on other texts, or not
given.

The Jinja template is rendered with sentinel strings for the messages, and the text around them is what Go has
to write. Then both are rendered on other conversations, answers with thoughts among them, and must agree to
the letter. BOS is left out: it belongs to the GGUF, and llama.cpp adds it by itself. Light.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..data.chat_templates.renderer import Renderer
from ..errors import WhetError
from .ollama_chat import (
    THOUGHT_TAG,
    GoChat,
    NotExpressible,
    Tags,
    conversations,
    jinja_prompt,
    said,
    system,
    thought_tags,
    user,
)

USER, ANSWER, LATER, SYSTEM = "Zquserz", "Zqanswerz", "Zqlaterz", "Zqsystemz"
"""Sentinels: no template writes or trims them."""
FROZEN = ("strftime_now", "datetime.now", "now()")
THOUGHTS = (
    "the chat template writes and drops thoughts by rules of its own, while Ollama would send them back as "
    "part of the answer."
)
ANOTHER_FOLLOWS = "the chat template writes a turn differently once another one follows it."
ANOTHER_FIRST = "the first question or the last answer is written differently from the others."

LAST = "(eq (len (slice $.Messages $i)) 1)"

Place = Literal["none", "always", "before", "ahead", "first", "last"]


class ThoughtsApart(NotExpressible):
    """It cannot be written as long as thoughts are part of the answer."""


@dataclass(frozen=True)
class Parts:
    """A conversation's text: ``prefix``, then for each question ``ask_start`` and ``opening`` around it, for
    each answer ``answer_start`` and ``answer_end``.

    The system message stands between ``before`` and ``after``: always (with a default), before or ahead of
    (behind or in front of the prefix) the first turn, inside the first or the last question.
    """

    prefix: str
    ask_start: str
    opening: str
    answer_start: str
    answer_end: str
    before: str = ""
    after: str = ""
    place: Place = "none"
    default: str = ""
    tags: Tags | None = None
    thinking_on: str = ""
    """What ends the prompt when the model is to think, and when it is not: for templates with ``tags``."""
    thinking_off: str = ""


def derive(renderer: Renderer) -> GoChat:
    """The Go template of a chat template. Raises :class:`NotExpressible`."""
    if any(word in renderer.source for word in FROZEN):
        raise NotExpressible("the chat template writes today's date, and a Modelfile would freeze it.")
    try:
        return _derive(renderer, None)
    except ThoughtsApart as reason:
        tags = thought_tags(renderer.source)
        if tags is None:
            raise NotExpressible(str(reason)) from None
        return _derive(renderer, tags)


def _derive(renderer: Renderer, tags: Tags | None) -> GoChat:
    """With ``tags`` Ollama tells thoughts and answer apart, and history holds answers alone."""
    parts = _parts(renderer, tags)
    _refuse_unwritable(parts)
    chat = GoChat(_compose(parts), parts.default, parts.place != "none")
    _verify(renderer, chat, tags)
    return chat


def _parts(renderer: Renderer, tags: Tags | None) -> Parts:
    start, opening = _cut(jinja_prompt(renderer, [user(USER)]), USER)
    again, rest = _cut(jinja_prompt(renderer, [user(USER), said(ANSWER), user(LATER)]), USER)
    between, rest = _cut(rest, ANSWER)
    middle, later_opening = _cut(rest, LATER)
    thinks = THOUGHT_TAG.search(opening) or THOUGHT_TAG.search(between)
    if thinks and tags is None:
        raise ThoughtsApart(THOUGHTS)
    if again != start or opening != later_opening:
        raise NotExpressible(THOUGHTS if thinks else ANOTHER_FOLLOWS)
    # What the prompt ends with beyond what an answer in the midst of a conversation begins with.
    opening, begun = (
        (opening.partition(tags[0])[0], opening) if tags and tags[0] in opening else (opening, "")
    )
    if not between.startswith(opening):
        raise NotExpressible(THOUGHTS if thinks else ANOTHER_FOLLOWS)
    # What an answer begins with beyond the generation prompt, such as the space after [/INST].
    answer_start = between.removeprefix(opening)
    if middle.endswith(start):
        prefix, ask_start, answer_end = "", start, middle.removesuffix(start)
    else:
        answer_end = _cut(renderer.render([user(USER), said(ANSWER)]), ANSWER)[1]
        ask_start = middle.removeprefix(answer_end)
        if not (middle.startswith(answer_end) and start.endswith(ask_start)):
            raise NotExpressible(ANOTHER_FIRST)
        prefix = start.removesuffix(ask_start)
    parts = Parts(prefix, ask_start, opening, answer_start, answer_end)
    if tags:
        off = jinja_prompt(renderer, [user(USER)], enable_thinking=False)
        parts = replace(
            parts,
            tags=tags,
            thinking_on=begun.removeprefix(opening),
            thinking_off=_cut(off, USER)[1].removeprefix(opening),
        )
    return _with_system(renderer, parts)


def _with_system(renderer: Renderer, parts: Parts) -> Parts:
    """``parts`` with the place of the system message, from where it stands in a short and a longer talk."""
    try:
        text = jinja_prompt(renderer, [system(SYSTEM), user(USER)])
        longer = jinja_prompt(renderer, [system(SYSTEM), user(USER), said(ANSWER), user(LATER)])
    except WhetError:
        return parts
    if SYSTEM not in text:
        return parts
    head, rest = _cut(text, SYSTEM)
    tail, _ = _cut(rest, USER)
    prefix, start = parts.prefix, parts.prefix + parts.ask_start
    if tail.endswith(parts.ask_start):
        after = tail.removesuffix(parts.ask_start)
        if len(prefix) >= len(head) + len(after) and prefix.startswith(head) and prefix.endswith(after):
            default = prefix[len(head) : len(prefix) - len(after)]
            return replace(parts, prefix="", before=head, after=after, place="always", default=default)
        if head.startswith(prefix):
            return replace(parts, before=head.removeprefix(prefix), after=after, place="before")
        if after.endswith(prefix):
            return replace(parts, before=head, after=after.removesuffix(prefix), place="ahead")
    if head.startswith(start):
        place: Place = "last" if longer.find(SYSTEM) > longer.find(ANSWER) else "first"
        return replace(parts, before=head.removeprefix(start), after=tail, place=place)
    raise NotExpressible("a system message changes how the user's turn is written.")


def _compose(parts: Parts) -> str:
    """One line without trimming dashes; newlines of the format stay literal."""
    block = f"{parts.before}{{{{ $.System }}}}{parts.after}"
    guarded = f"{{{{ if $.System }}}}{block}{{{{ end }}}}"
    around = {"always": block, "before": parts.prefix + guarded, "ahead": guarded + parts.prefix}
    # Ollama keeps the system message in .Messages, so that the first question after it has index 1.
    inside = {
        "first": f"{{{{ if and $.System (eq $i 1) }}}}{block}{{{{ end }}}}",
        "last": f"{{{{ if and $.System {LAST} }}}}{block}{{{{ end }}}}",
    }
    begun, thought = _thinking(parts)
    return (
        f"{around.get(parts.place, parts.prefix)}{{{{ range $i, $m := .Messages }}}}"
        f'{{{{ if eq $m.Role "user" }}}}{parts.ask_start}{inside.get(parts.place, "")}'
        f"{{{{ $m.Content }}}}{parts.opening}{begun}"
        f'{{{{ else if eq $m.Role "assistant" }}}}{parts.answer_start}{thought}'
        f"{{{{ $m.Content }}}}{parts.answer_end}"
        "{{ end }}{{ end }}"
    )


def _thinking(parts: Parts) -> tuple[str, str]:
    """What ends the prompt where Ollama's `think` is on or off, and the thoughts of an answer that is to be
    gone on with. From the latter, text around .Thinking, Ollama learns the tags."""
    if parts.tags is None:
        return "", ""
    off, on = parts.thinking_off, parts.thinking_on
    switch = f"{{{{ if and $.IsThinkSet (not $.Think) }}}}{off}{{{{ else }}}}{on}{{{{ end }}}}"
    ends = on if on == off else switch
    thought = f"{parts.tags[0]}\n{{{{ .Thinking }}}}\n{parts.tags[1]}\n\n"
    return (
        f"{{{{ if {LAST} }}}}{ends}{{{{ end }}}}" if ends else "",
        f"{{{{ if and .Thinking {LAST} }}}}{thought}{{{{ end }}}}",
    )


def _refuse_unwritable(parts: Parts) -> None:
    """What Go would take for an action, or Ollama's reader of Modelfiles for an end, or would drop."""
    texts = [value for value in vars(parts).values() if isinstance(value, str)]
    if any("{{" in text or "}}" in text or '"""' in text for text in texts):
        raise NotExpressible(
            "the chat template's own text contains braces or quotes that a Modelfile cannot hold."
        )
    dropped = sorted({char for text in texts for char in text if not char.isprintable()} - set("\n\t"))
    if dropped:
        named = ", ".join(f"U+{ord(char):04X}" for char in dropped)
        raise NotExpressible(f"Ollama's reader of Modelfiles drops characters of the chat template: {named}.")


def _verify(renderer: Renderer, chat: GoChat, tags: Tags | None) -> None:
    """Both templates on conversations that were not used to derive one from the other."""
    for case in conversations(renderer, chat):
        if case.wanted(renderer) != case.given(chat):
            if any(THOUGHT_TAG.search(message["content"]) for message in case.messages):
                raise (NotExpressible if tags else ThoughtsApart)(THOUGHTS)
            raise NotExpressible("the derived template gives another prompt than the chat template.")


def trims(renderer: Renderer) -> bool:
    """Whether the template takes spaces and lines around a message away, which Ollama does not."""
    try:
        padded = renderer.render([user(f" \n{USER} \n")], add_generation_prompt=True)
    except WhetError:
        return False
    return f" \n{USER} \n" not in padded


def _cut(text: str, sentinel: str) -> tuple[str, str]:
    if text.count(sentinel) != 1:
        raise NotExpressible(f"the chat template writes a message {text.count(sentinel)} times.")
    before, _, after = text.partition(sentinel)
    return before, after
