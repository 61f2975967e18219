"""A chat template as Ollama's Go template: derived by rendering sentinels, verified on other texts, or not
given.

The Jinja template is rendered with sentinel strings for the messages, and the text around them is what Go has
to write. Then both are rendered on other conversations, answers with thoughts among them, and must agree to
the letter. BOS is left out: it belongs to the GGUF, and llama.cpp adds it by itself. Light.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..data.chat_templates.renderer import Renderer
from ..errors import WhetError
from .go_template import render
from .smoke_cases import ASK, CASES

USER, ANSWER, LATER, SYSTEM = "Zquserz", "Zqanswerz", "Zqlaterz", "Zqsystemz"
"""Sentinels: no template writes or trims them."""
THOUGHT_TAG = re.compile(r"[<\[◁]\|?/?[\w:|]*think\w*\|?[>\]▷]", re.IGNORECASE)
FROZEN = ("strftime_now", "datetime.now", "now()")
THOUGHTS = (
    "the chat template writes and drops thoughts by rules of its own, while Ollama would send them back as "
    "part of the answer."
)
ANOTHER_FOLLOWS = "the chat template writes a turn differently once another one follows it."
ANOTHER_FIRST = "the first question or the last answer is written differently from the others."

LAST = "(eq (len (slice $.Messages $i)) 1)"

Message = dict[str, str]
Tags = tuple[str, str]
Place = Literal["none", "always", "before", "ahead", "first", "last"]


class NotExpressible(Exception):
    """The template cannot be written in Go without being wrong somewhere; the message says why."""


class ThoughtsApart(NotExpressible):
    """It cannot be written as long as thoughts are part of the answer."""


@dataclass(frozen=True)
class GoChat:
    """A chat format as Ollama takes it."""

    template: str
    system: str = ""
    """The template's default system message, or empty."""
    knows_system: bool = True
    """False: the chat template refuses system messages, and Go leaves them out."""


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


def thought_tags(source: str) -> Tags | None:
    """The tags around thoughts that a template's source names; None when it names no pair."""
    found = set(THOUGHT_TAG.findall(source))
    closing = sorted(tag for tag in found if "/" in tag or "END" in tag)
    pairs = [(re.sub("END", "START", tag.replace("/", "")), tag) for tag in closing]
    return next((pair for pair in pairs if pair[0] in found), None)


def _parts(renderer: Renderer, tags: Tags | None) -> Parts:
    start, opening = _cut(_prompt(renderer, [_user(USER)]), USER)
    again, rest = _cut(_prompt(renderer, [_user(USER), _said(ANSWER), _user(LATER)]), USER)
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
        answer_end = _cut(renderer.render([_user(USER), _said(ANSWER)]), ANSWER)[1]
        ask_start = middle.removeprefix(answer_end)
        if not (middle.startswith(answer_end) and start.endswith(ask_start)):
            raise NotExpressible(ANOTHER_FIRST)
        prefix = start.removesuffix(ask_start)
    parts = Parts(prefix, ask_start, opening, answer_start, answer_end)
    if tags:
        off = _prompt(renderer, [_user(USER)], enable_thinking=False)
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
        text = _prompt(renderer, [_system(SYSTEM), _user(USER)])
        longer = _prompt(renderer, [_system(SYSTEM), _user(USER), _said(ANSWER), _user(LATER)])
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


@dataclass(frozen=True)
class Conversation:
    """A talk that ends in a question, with the model's answers as it wrote them; ``think``: as the person set
    it, None when they did not."""

    messages: list[Message]
    think: bool | None = None
    apart: bool = False
    """The chat template gets thoughts as reasoning_content, not within the answer."""

    def wanted(self, renderer: Renderer) -> str:
        """The prompt of the chat template, without BOS."""
        variables = {} if self.think is None else {"enable_thinking": self.think}
        messages = self.messages
        if self.apart and (tags := thought_tags(renderer.source)):
            messages = [_apart(message, tags) for message in messages]
        return _prompt(renderer, messages, **variables)

    def data(self, chat: GoChat) -> dict[str, Any]:
        """What Ollama gives its template."""
        return go_data(chat, self.messages, self.think)

    def given(self, chat: GoChat) -> str:
        """The prompt as Ollama makes it."""
        return render(chat.template, self.data(chat))


def conversations(renderer: Renderer, chat: GoChat) -> list[Conversation]:
    """What both templates are rendered on: one to three questions, with and without a system message; answers
    with thoughts, in every tag that the template knows; thinking switched on and off."""
    answer = CASES["answered"][1]
    plain = [case for case in CASES.values() if case[-1]["role"] == "user"]
    plain += [[ASK, answer, ASK, answer, ASK], [_system("Be brief."), ASK, answer, ASK, answer, ASK]]
    found = [Conversation(case) for case in plain if chat.knows_system or case[0]["role"] != "system"]
    known = tags_of(chat.template)
    if known is None:
        for tag in sorted(set(THOUGHT_TAG.findall(renderer.source))):
            opened = re.sub("END", "START", tag.replace("/", ""))
            thoughts = [f"3 × 12{tag}\n\nIt is 36.", f"{opened}\n3 × 12\n{tag}\n\nIt is 36."]
            found += [Conversation([ASK, _said(text), ASK]) for text in thoughts]
        return found
    opens = _prompt(renderer, [ASK]).rstrip().endswith(known[0])
    said = _said(f"{'' if opens else known[0]}\n3 × 12\n{known[1]}\n\nIt is 36.")
    for think in (None, True, False):
        talks = [[ASK], [ASK, said, ASK], [ASK, answer, ASK, said, ASK]]
        found += [Conversation(talk, think, apart) for talk in talks for apart in (False, True)]
    return found


def tags_of(template: str) -> Tags | None:
    """The tags that Ollama takes from a template: the text around .Thinking. None: it tells nothing apart."""
    match = re.search(r"\}\}([^{}]+)\{\{-? \.Thinking -?\}\}([^{}]+)\{\{", template)
    tags = (match[1].strip(), match[2].strip()) if match else ("", "")
    return tags if all(tags) else None


def _apart(message: Message, tags: Tags) -> Message:
    """The message as Ollama keeps it: thoughts and answer apart, spaces around the tags gone."""
    before, closed, answer = message["content"].partition(tags[1])
    if message["role"] != "assistant" or not closed:
        return message
    thoughts = before.lstrip().removeprefix(tags[0]).lstrip()
    return {"role": "assistant", "content": answer.lstrip(), "reasoning_content": thoughts}


def trims(renderer: Renderer) -> bool:
    """Whether the template takes spaces and lines around a message away, which Ollama does not."""
    try:
        padded = renderer.render([_user(f" \n{USER} \n")], add_generation_prompt=True)
    except WhetError:
        return False
    return f" \n{USER} \n" not in padded


def render_go(chat: GoChat, messages: Sequence[Message]) -> str:
    """The prompt as Ollama makes it: SYSTEM stands in for a missing system message."""
    return render(chat.template, go_data(chat, messages))


def go_data(chat: GoChat, messages: Sequence[Message], think: bool | None = None) -> dict[str, Any]:
    """What Ollama gives a template for a conversation. Its own system message stays in .Messages too; a
    template with thoughts is told to think unless the person said otherwise."""
    if chat.system and messages[0]["role"] != "system":
        messages = [_system(chat.system), *messages]
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    tags = tags_of(chat.template)
    kept = [_apart(message, tags) if tags else message for message in messages]
    turns = [
        {"Role": one["role"], "Content": one["content"], "Thinking": one.get("reasoning_content", "")}
        for one in kept
    ]
    flags = {"Think": tags is not None and think is not False, "IsThinkSet": tags is not None}
    return {"System": system, "Messages": turns, "Prompt": messages[-1]["content"], "Response": "", **flags}


def _prompt(renderer: Renderer, messages: Sequence[Message], **variables: Any) -> str:
    """The prompt without BOS, which llama.cpp adds."""
    try:
        text = renderer.render(messages, add_generation_prompt=True, **variables)
    except WhetError as error:
        if messages[0]["role"] == "system":
            raise
        raise NotExpressible(error.message.replace("The chat template", "the chat template", 1)) from error
    return text.removeprefix(renderer.bos_token or "")


def _cut(text: str, sentinel: str) -> tuple[str, str]:
    if text.count(sentinel) != 1:
        raise NotExpressible(f"the chat template writes a message {text.count(sentinel)} times.")
    before, _, after = text.partition(sentinel)
    return before, after


def _system(content: str) -> Message:
    return {"role": "system", "content": content}


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _said(content: str) -> Message:
    return {"role": "assistant", "content": content}
