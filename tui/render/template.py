"""A chat template beside real rows: tokens, what is learnt of them, and who renders it otherwise."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from whet.engine.api import Comparison, TemplateFacts, TemplatePreview, TemplateView

from .facts import facts
from .findings import finding_text
from .text import plain, printable

DOT = "·"
ANSWER = "«", "»"
SPECIAL = "⟦", "⟧"


def template_details(view: TemplateView, colour: bool) -> RenderableType:
    """Facts, rows, comparisons, findings.

    Args:
        colour: mark by colour; else by signs, which a pipe and a screen reader keep.
    """
    parts: list[RenderableType] = [template_origin(view), Text(), template_legend(colour), Text()]
    parts += [template_preview(row, colour) for row in view.rows]
    if view.comparisons:
        parts.append(Text("Compared with training, by token ids of the prompts:", style="bold"))
        parts += [_comparison(comparison) for comparison in view.comparisons]
        parts.append(Text())
    if view.findings:
        parts += [finding_text(finding) for finding in view.findings]
    else:
        parts.append(Text("No finding on rows and template.", style="green"))
    return Group(*parts)


def template_preview(preview: TemplatePreview, colour: bool) -> RenderableType:
    """One row as tokens, parted by dots; what the model learns to write and special tokens are marked."""
    place = f"{plain(preview.file)}:{preview.line}"
    if preview.problem:
        return Text.assemble((f"{place}  ", "dim"), ("cannot be used: ", "red"), plain(preview.problem), "\n")
    supervised = sum(token.supervised for token in preview.tokens)
    cut = ", cut at the maximum length" if preview.truncated else ""
    head = Text(f"{place}  {len(preview.tokens)} tokens, {supervised} supervised{cut}", style="dim")
    return Group(head, _coloured(preview) if colour else _signed(preview), Text())


def _coloured(preview: TemplatePreview) -> Text:
    text = Text()
    for number, token in enumerate(preview.tokens):
        style = "green underline" if token.supervised else "dim"
        words = _shown(token.text)
        text.append(words, style=f"{style} reverse" if token.special else style)
        last = number + 1 == len(preview.tokens)
        text.append("" if last or words.endswith("\n") else DOT, style="dim")
    text.rstrip()
    return text


def _signed(preview: TemplatePreview) -> Text:
    """``«`` opens and ``»`` closes what is supervised, ``⟦ ⟧`` stand around one special token."""
    pieces: list[str] = []
    inside = False
    for token in preview.tokens:
        if token.supervised != inside:
            # A mark takes the dot's place.
            if pieces and pieces[-1] == DOT:
                pieces.pop()
            pieces.append(ANSWER[0] if token.supervised else ANSWER[1])
            inside = token.supervised
        words = _shown(token.text)
        pieces.append(f"{SPECIAL[0]}{words}{SPECIAL[1]}" if token.special else words)
        pieces.append("" if words.endswith("\n") else DOT)
    while pieces and pieces[-1] in (DOT, ""):
        pieces.pop()
    return Text("".join(pieces).rstrip("\n") + (ANSWER[1] if inside else ""))


def template_legend(colour: bool) -> Text:
    """What the marks mean."""
    if not colour:
        return Text(f"{DOT} parts tokens, {ANSWER[0]}supervised{ANSWER[1]}, {SPECIAL[0]}special{SPECIAL[1]}")
    return Text.assemble(
        (f"{DOT} parts tokens, ", "dim"),
        ("supervised", "green underline"),
        (", ", "dim"),
        ("special", "dim reverse"),
        (", ", "dim"),
        ("not learnt", "dim"),
    )


def template_origin(view: TemplateView) -> RenderableType:
    """Whose template is in force, and what it asks with."""
    named = view.template
    if named is not None and "{" in named:
        named = "a text of the recipe"
    rows = [
        ("model", f"{view.model} (family {view.family})"),
        ("template", {None: "none: plain text", "model": "the model's own"}.get(named, str(named))),
    ]
    if view.note:
        rows[1:] = [("method", view.method), *(rows[1:] if named is not None else []), ("rows", view.note)]
    if view.facts is not None:
        rows.append(("is", _likeness(view.facts)))
        rows.append(("asks with", repr(view.facts.prompt)))
        if view.facts.trained != view.facts.prompt:
            rows.append(("trained after", repr(view.facts.trained)))
        if view.facts.split_markers:
            rows.append(("spelt out", f"{', '.join(view.facts.split_markers)}: no tokens of this vocabulary"))
        rows.append(("fitting", ", ".join(view.facts.fitting) or "no known template with markers"))
    if view.own_facts is not None:
        rows.append(("model's own is", _likeness(view.own_facts)))
    if view.data_family is not None:
        rows.append(("rows written for", f"{view.data_family}: its markers stand in the text"))
    if view.end_of_turn is not None:
        rows.append(("a turn ends with", view.end_of_turn))
    return facts(rows)


def _likeness(known: TemplateFacts) -> str:
    if known.family is None:
        near = f"; nearest is {known.nearest}, {known.likeness:.0%} alike" if known.nearest else ""
        return f"like none that is known{near}"
    return f"{known.nearest} ({known.likeness:.0%} alike), the format of {known.family}"


def _comparison(comparison: Comparison) -> Text:
    same, whole = comparison.same, comparison.conversations
    good = whole > 0 and same == whole
    text = Text.assemble(
        ("  ", ""),
        ("same     " if good else "differs  " if comparison.first else "unknown  ",
         "green" if good else "red" if comparison.first else "yellow"),
        plain(comparison.with_what),
        (f"  {same} of {whole} conversations" if whole else "", "dim"),
    )  # fmt: skip
    if comparison.first is not None:
        first = comparison.first
        text.append(f"\n           {plain(first.conversation)}, from token {first.at} on:", style="dim")
        text.append(f"\n             trained  {_tokens(first.trained)}")
        text.append(f"\n             there    {_tokens(first.other)}")
    for note in comparison.notes:
        text.append(f"\n           {plain(note)}", style="dim")
    return text


def _tokens(texts: list[str]) -> str:
    return DOT.join(_shown(text).replace("\n", "") for text in texts) or "(nothing)"


def _shown(text: str) -> str:
    return printable(text).replace("\n", "⏎\n")
