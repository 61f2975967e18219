"""Templates without generation tags: what other engines read."""

from __future__ import annotations

import re

from .environment import template_environment

_TAG = re.compile(r"(?P<before>\s*?)\{%(?P<left>-?)\s*(?:end)?generation\s*(?P<right>-?)%\}(?P<after>\s*)")

Tokens = list[tuple[str, str]]


def strip_generation_tags(source: str) -> str:
    """The template without generation tags, rendering the same text.

    A tag's whitespace control decides which space around it is printed, so taking it out may change the text.
    Where it would, an empty comment with the same control stands in its place.
    """
    deleted = _TAG.sub(_without, source)
    if _tokens(deleted) == _tokens(source):
        return deleted
    return _TAG.sub(r"\g<before>{#\g<left> \g<right>#}\g<after>", source)


def _without(tag: re.Match[str]) -> str:
    """The space around a tag that Jinja would print, with ``trim_blocks`` on."""
    before = "" if tag["left"] else tag["before"]
    after = "" if tag["right"] else tag["after"].removeprefix("\n")
    return before + after


def _tokens(source: str) -> Tokens:
    """What Jinja's lexer makes of a template, printed text with its whitespace control applied, without
    generation tags and comments."""
    kept: Tokens = []
    inside: Tokens = []
    for _, kind, value in template_environment().lex(source):
        if kind == "data" and kept and kept[-1][0] == "data":
            kept[-1] = ("data", kept[-1][1] + value)
        elif kind == "block_begin":
            inside = [(kind, "")]
        elif inside and kind != "whitespace":
            inside.append((kind, value if kind != "block_end" else ""))
            if kind == "block_end":
                names = [value for kind, value in inside if kind == "name"]
                kept += [] if names in (["generation"], ["endgeneration"]) else inside
                inside = []
        elif not inside and kind in ("data", "name", "operator", "string", "integer", "float"):
            kept.append((kind, value))
        elif not inside and kind in ("variable_begin", "variable_end"):
            kept.append((kind, ""))
    return kept
