"""What a chat template writes, seen by rendering short conversations: its family, its markers, its prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from ..errors import WhetError
from .chat_templates import TEMPLATES, find
from .chat_templates.renderer import Renderer
from .chat_templates.stripping import strip_generation_tags

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from .tokenization import RowTokenizer

ASK, ANSWER, AGAIN, LAST = "Zquserz", "Zqanswerz", "Zqagainz", "Zqlastz"
"""Sentinels: no template writes or trims them."""

ALIKE = 0.8
"""From this likeness on a template is a known one, perhaps with another system message."""

_MARKER = re.compile(r"<\|[^|<>\s]{1,40}\|>|<(?:start|end)_of_turn>|</?s>")


class TemplateFacts(BaseModel):
    """Facts about the template in force, and about those that would fit this vocabulary."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    markers: list[str] = Field(default_factory=list, description="Markers it writes around messages.")
    split_markers: list[str] = Field(
        default_factory=list, description="Those of them that are no single tokens of this vocabulary."
    )
    nearest: str | None = Field(None, description="The known template whose text is nearest to its own.")
    likeness: float = Field(0.0, description="How near, 0 to 1.")
    fitting: list[str] = Field(
        default_factory=list, description="Known templates whose markers are all tokens of this vocabulary."
    )
    missing_header: str = Field(
        "", description="How it opens an assistant's turn, where it has no generation prompt that writes it."
    )
    prompt: str = Field("", description="What stands between a question and its answer at inference.")
    trained: str = Field(
        "", description="What stands there in training; begins with `prompt` where all is well."
    )
    repairs: dict[str, str] = Field(
        default_factory=dict, description="Its text repaired, by the id of the finding that this ends."
    )

    @property
    def family(self) -> str | None:
        """Whose format it is; None for one that is like none we know."""
        return TEMPLATES[self.nearest].family if self.nearest and self.likeness >= ALIKE else None

    def better(self, own: str | None) -> str:
        """A known template to use instead.

        Args:
            own: the model family's.
        """
        alike = [self.nearest] if self.nearest and self.likeness >= ALIKE else []
        wanted = [*alike, *([own] if own else []), "chatml", *self.fitting]
        return next((name for name in wanted if name in self.fitting), "vicuna")


def template_facts(tokenizer: RowTokenizer) -> TemplateFacts | None:
    """Facts of the template in force; None without one, or for one that refuses a plain conversation."""
    renderer = tokenizer.renderer
    parts = _parts(renderer) if renderer is not None else None
    if renderer is None or parts is None:
        return None
    markers = list(dict.fromkeys(_MARKER.findall("".join(parts))))
    nearest, likeness = nearest_template(parts, tokenizer.bos_token, tokenizer.eos_token)
    prompt, trained = _openings(renderer)
    bare = _behind_question(renderer, prompt=False)
    header = trained.removeprefix(prompt) if prompt == bare and trained.startswith(prompt) else ""
    header = header if header.strip() else ""
    return TemplateFacts(
        markers=markers,
        split_markers=[marker for marker in markers if not is_one_token(tokenizer.tokenizer, marker)],
        nearest=nearest,
        likeness=round(likeness, 3),
        fitting=fitting_templates(tokenizer.tokenizer),
        missing_header=header,
        prompt=prompt,
        trained=trained,
        repairs=_repairs(tokenizer, renderer, header),
    )


def fitting_templates(tokenizer: Tokenizer) -> list[str]:
    """Known templates with markers, all of which are single tokens of this vocabulary."""
    return [
        name
        for name, info in TEMPLATES.items()
        if info.markers and all(is_one_token(tokenizer, marker) for marker in info.markers)
    ]


def is_one_token(tokenizer: Tokenizer, text: str) -> bool:
    """Whether a marker is one token here rather than spelt out in pieces."""
    return len(tokenizer.encode(text, add_special_tokens=False).ids) == 1


def nearest_template(parts: Sequence[str], bos: str | None, eos: str | None) -> tuple[str | None, float]:
    """The known template that is nearest, and how near: 1 for the same text around the same messages.

    What stands around turns decides; what stands before the first one (a default system message) settles
    ties.
    """
    scored = []
    for name in TEMPLATES:
        known = _known_parts(name, bos, eos)
        if known is None:
            continue
        pairs = list(zip(parts, known, strict=True))
        turns = sum(_ratio(mine, its) for mine, its in pairs[1:]) / (len(pairs) - 1)
        opening = _ratio(parts[0][-40:], known[0][-40:])
        scored.append(((4 * turns + opening) / 5, _ratio(*pairs[0]), name))
    if not scored:
        return None, 0.0
    # The first of equals: the order of TEMPLATES.
    likeness, _, name = max(scored, key=lambda one: one[:2])
    return name, likeness


def rendered_family(markers: Sequence[str]) -> str | None:
    """The known template that most of these markers belong to; None where none has any of them."""

    def shared(name: str) -> float:
        own = set(TEMPLATES[name].markers)
        return len(own & set(markers)) / len(own) if own else 0.0

    best = max(TEMPLATES, key=shared)
    return best if shared(best) > 0 else None


def _ratio(mine: str, its: str) -> float:
    if mine == its:
        return 1.0
    pieces = re.compile(r"<[^<>]*>|\w+|\s+|[^\w\s]")
    return SequenceMatcher(None, pieces.findall(mine), pieces.findall(its), autojunk=False).ratio()


def _parts(renderer: Renderer) -> list[str] | None:
    """The text before, between and after the messages of two exchanges; None where it refuses them."""
    turns = [("user", ASK), ("assistant", ANSWER), ("user", AGAIN), ("assistant", LAST)]
    try:
        text = renderer.render([{"role": role, "content": content} for role, content in turns])
    except WhetError:
        return None
    parts = []
    for _, content in turns:
        before, found, text = text.partition(content)
        if not found:
            return None
        parts.append(before)
    return [*parts, text]


@lru_cache(maxsize=256)
def _known_parts(name: str, bos: str | None, eos: str | None) -> tuple[str, ...] | None:
    parts = _parts(Renderer(find(name).source, bos, eos))
    return None if parts is None else tuple(parts)


def _openings(renderer: Renderer) -> tuple[str, str]:
    """What stands between question and answer: at inference, and in training."""
    question = {"role": "user", "content": ASK}
    full = renderer.render([question, {"role": "assistant", "content": ANSWER}])
    return _behind_question(renderer, prompt=True), full.partition(ASK)[2].partition(ANSWER)[0]


def _behind_question(renderer: Renderer, prompt: bool) -> str:
    text = renderer.render([{"role": "user", "content": ASK}], add_generation_prompt=prompt)
    return text.partition(ASK)[2]


def _repairs(tokenizer: RowTokenizer, renderer: Renderer, header: str) -> dict[str, str]:
    """Texts of the same template with one thing mended, each tried before it is offered."""
    source, repairs = renderer.source, {}
    if header:
        # A newline at a template's very end is not printed, so one must not come to stand inside.
        ending = (
            "{% if add_generation_prompt %}{{ " + json.dumps(header, ensure_ascii=False) + " }}{% endif %}"
        )
        text = source.removesuffix("\n") + ending
        again = _again(text, renderer)
        if _behind_question(again, prompt=True) == _behind_question(renderer, prompt=False) + header:
            repairs["D09"] = text
    prompt, trained = _openings(renderer)
    if trained and not trained.startswith(prompt):
        # The prompt it writes itself is turned off, and what training has there is written instead.
        text = (
            "{% set wanted = add_generation_prompt %}{% set add_generation_prompt = false %}"
            + source.removesuffix("\n")
            + "{% if wanted %}{{ "
            + json.dumps(trained.removeprefix(_behind_question(renderer, prompt=False)), ensure_ascii=False)
            + " }}{% endif %}"
        )
        if _openings(_again(text, renderer)) == (trained, trained):
            repairs["D10"] = text
    bos = tokenizer.bos_token
    if tokenizer.prefix and bos is not None:
        text = "{{- bos_token }}" + source
        if not renderer.render([{"role": "user", "content": ASK}]).startswith(bos):
            repairs["D06"] = text
    if renderer.tagged and not _spans_hold_answers(renderer):
        text = strip_generation_tags(source)
        if _spans_hold_answers(_again(text, renderer)):
            repairs["D01"] = text
    return repairs


def _again(source: str, renderer: Renderer) -> Renderer:
    return Renderer(source, renderer.bos_token, renderer.eos_token, renderer.special_tokens)


def _spans_hold_answers(renderer: Renderer) -> bool:
    """Whether the supervised text of an exchange is its answer."""
    turns = [{"role": "user", "content": ASK}, {"role": "assistant", "content": ANSWER}]
    try:
        rendered = renderer.render_with_spans(turns)
    except WhetError:
        return False
    inside = "".join(rendered.text[start:end] for start, end in rendered.spans)
    return ANSWER in inside and ASK not in inside
