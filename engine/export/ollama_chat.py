"""What Ollama makes of a conversation: the data it gives a Go template, and the talks to try one on. Light.

The system message stays among the messages. A template that writes .Thinking between two tags has its model's
replies split at them: thoughts and answer are kept apart, spaces around the tags dropped, and the template is
told to think unless the person said otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..data.chat_templates.renderer import Renderer
from ..errors import WhetError
from .go_template import render
from .smoke_cases import ASK, CASES

THOUGHT_TAG = re.compile(r"[<\[◁]\|?/?[\w:|]*think\w*\|?[>\]▷]", re.IGNORECASE)

Message = dict[str, str]
Tags = tuple[str, str]


class NotExpressible(Exception):
    """The template cannot be written in Go without being wrong somewhere; the message says why."""


@dataclass(frozen=True)
class GoChat:
    """A chat format as Ollama takes it."""

    template: str
    system: str = ""
    """The template's default system message, or empty."""
    knows_system: bool = True
    """False: the chat template refuses system messages, and Go leaves them out."""


def thought_tags(source: str) -> Tags | None:
    """The tags around thoughts that a template's source names; None when it names no pair."""
    found = set(THOUGHT_TAG.findall(source))
    closing = sorted(tag for tag in found if "/" in tag or "END" in tag)
    pairs = [(re.sub("END", "START", tag.replace("/", "")), tag) for tag in closing]
    return next((pair for pair in pairs if pair[0] in found), None)


@dataclass(frozen=True)
class Conversation:
    """A talk that ends in a question, with the model's answers as it wrote them; ``think``: as the person set
    it, None when they did not."""

    messages: list[Message]
    think: bool | None = None
    split: bool = False
    """The chat template gets thoughts as reasoning_content, not within the answer."""

    def wanted(self, renderer: Renderer) -> str:
        """The prompt of the chat template, without BOS."""
        variables = {} if self.think is None else {"enable_thinking": self.think}
        messages = self.messages
        if self.split and (tags := thought_tags(renderer.source)):
            messages = [apart(message, tags) for message in messages]
        return jinja_prompt(renderer, messages, **variables)

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
    plain += [[ASK, answer, ASK, answer, ASK], [system("Be brief."), ASK, answer, ASK, answer, ASK]]
    found = [Conversation(case) for case in plain if chat.knows_system or case[0]["role"] != "system"]
    known = tags_of(chat.template)
    if known is None:
        for tag in sorted(set(THOUGHT_TAG.findall(renderer.source))):
            opened = re.sub("END", "START", tag.replace("/", ""))
            thoughts = [f"3 × 12{tag}\n\nIt is 36.", f"{opened}\n3 × 12\n{tag}\n\nIt is 36."]
            found += [Conversation([ASK, said(text), ASK]) for text in thoughts]
        return found
    opens = jinja_prompt(renderer, [ASK]).rstrip().endswith(known[0])
    thought = said(f"{'' if opens else known[0]}\n3 × 12\n{known[1]}\n\nIt is 36.")
    for think in (None, True, False):
        talks = [[ASK], [ASK, thought, ASK], [ASK, answer, ASK, thought, ASK]]
        found += [Conversation(talk, think, split) for talk in talks for split in (False, True)]
    return found


def tags_of(template: str) -> Tags | None:
    """The tags that Ollama takes from a template: the text around .Thinking. None: it tells nothing apart."""
    match = re.search(r"\}\}([^{}]+)\{\{-? \.Thinking -?\}\}([^{}]+)\{\{", template)
    tags = (match[1].strip(), match[2].strip()) if match else ("", "")
    return tags if all(tags) else None


def apart(message: Message, tags: Tags) -> Message:
    """The message as Ollama keeps it: thoughts and answer apart, spaces around the tags gone."""
    before, closed, answer = message["content"].partition(tags[1])
    if message["role"] != "assistant" or not closed:
        return message
    thoughts = before.lstrip().removeprefix(tags[0]).lstrip()
    return {"role": "assistant", "content": answer.lstrip(), "reasoning_content": thoughts}


def render_go(chat: GoChat, messages: Sequence[Message]) -> str:
    """The prompt as Ollama makes it: SYSTEM stands in for a missing system message."""
    return render(chat.template, go_data(chat, messages))


def go_data(chat: GoChat, messages: Sequence[Message], think: bool | None = None) -> dict[str, Any]:
    """What Ollama gives a template for a conversation. Its own system message stays in .Messages too; a
    template with thoughts is told to think unless the person said otherwise."""
    if chat.system and messages[0]["role"] != "system":
        messages = [system(chat.system), *messages]
    first = messages[0]["content"] if messages[0]["role"] == "system" else ""
    tags = tags_of(chat.template)
    kept = [apart(message, tags) if tags else message for message in messages]
    turns = [
        {"Role": one["role"], "Content": one["content"], "Thinking": one.get("reasoning_content", "")}
        for one in kept
    ]
    flags = {"Think": tags is not None and think is not False, "IsThinkSet": tags is not None}
    return {"System": first, "Messages": turns, "Prompt": messages[-1]["content"], "Response": "", **flags}


def jinja_prompt(renderer: Renderer, messages: Sequence[Message], **variables: Any) -> str:
    """The prompt without BOS, which llama.cpp adds."""
    try:
        text = renderer.render(messages, add_generation_prompt=True, **variables)
    except WhetError as error:
        if messages[0]["role"] == "system":
            raise
        raise NotExpressible(error.message.replace("The chat template", "the chat template", 1)) from error
    return text.removeprefix(renderer.bos_token or "")


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def said(content: str) -> Message:
    return {"role": "assistant", "content": content}
