"""A chat template beside real rows: what is trained on, whose format it is, what the checks say. Light."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from .data.formats import sniff, to_example
from .data.marker_scan import MarkerScan
from .data.preview import TemplatePreview, preview_template
from .data.row_preview import NOTES, preview_rows
from .data.rows import RawRow, RowError
from .data.sources import iter_rows
from .data.template_facts import TemplateFacts, rendered_family, template_facts
from .data.tokenization import RowTokenizer, TokenizerFiles, messages_of
from .errors import WhetError
from .findings import Finding
from .plan import make_plan
from .recipe import Recipe
from .template_compare import Comparison, Conversation, Others, common_start

COMPARED = 16
"""Conversations that all templates render."""

LOOKED_AT = 200
LISTED = {f"D{number:02d}" for number in range(1, 14)} | {"D15", "D17"}


class TemplateView(BaseModel):
    """All that `whet template` shows."""

    model_config = ConfigDict(frozen=True)

    model: str
    source: str
    template: str | None = Field(description="In force: a name, `model`, a Jinja text, or None.")
    facts: TemplateFacts | None = Field(description="Of the template in force.")
    own_facts: TemplateFacts | None = Field(description="Of the model's own, where another is in force.")
    family: str = Field(description="The model's.")
    data_family: str | None = Field(description="The template whose markers stand in the rows as text.")
    end_of_turn: str | None
    method: str = Field("sft", description="That the rows were read for.")
    note: str = Field("", description="What of a template applies to rows of this method.")
    rows: list[TemplatePreview]
    findings: list[Finding]
    comparisons: list[Comparison]


def template_view(
    recipe: Recipe,
    rows: int,
    gguf: Path | None = None,
    modelfile: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> TemplateView:
    """Render, mark, check and compare.

    Args:
        recipe: uses its model and data.
        rows: how many to show.
        gguf: a GGUF file of the same model, whose template and tokenizer are compared.
        modelfile: an Ollama Modelfile, likewise.
        progress: called with the number of rows read while all of them are checked.

    Raises:
        WhetError: ``model.*``, ``data.*``, ``tokenizer.*``, ``template.*``; ``gguf.*``.
    """
    plan = make_plan(recipe, progress=progress)
    used, report = plan.data_recipe(), plan.data.report
    files = TokenizerFiles.read(plan.model.path)
    tokenizer = RowTokenizer.from_files(files, used.data.template)
    head = _head(used)
    conversations = _conversations(head, used, tokenizer)
    others = Others(files, tokenizer)
    comparisons = []
    if used.data.template is not None and files.chat_template is not None:
        comparisons.append(others.own(conversations))
    if gguf is not None:
        comparisons.append(others.gguf(gguf, conversations))
    if modelfile is not None:
        comparisons.append(others.modelfile(modelfile, conversations))
    own = used.data.template is None or files.chat_template is None
    return TemplateView(
        model=plan.model.name,
        source=_first_source(recipe),
        template=report.template,
        facts=report.template_facts,
        own_facts=None if own else template_facts(RowTokenizer.from_files(files)),
        family=plan.model.family,
        data_family=_data_family(head, used, tokenizer),
        end_of_turn=report.end_of_turn,
        method=used.method.kind,
        note=NOTES.get(used.method.kind, ""),
        rows=preview_template(used, rows) if used.method.kind == "sft" else preview_rows(used, rows),
        findings=[finding for finding in plan.findings if finding.id in LISTED],
        comparisons=comparisons,
    )


def _first_source(recipe: Recipe) -> str:
    train = recipe.data.train
    return train if isinstance(train, str) else train[0]


def _head(recipe: Recipe) -> list[RawRow]:
    rows = islice(iter_rows(_first_source(recipe), recipe.data), LOOKED_AT)
    return [row for row in rows if isinstance(row, RawRow)]


def _conversations(rows: Sequence[RawRow], recipe: Recipe, tokenizer: RowTokenizer) -> list[Conversation]:
    """Questions of the first rows that every template could be asked."""
    section, renderer = recipe.data, tokenizer.renderer
    layout = section.format if section.format != "auto" else sniff(rows, section.columns).format
    if renderer is None or layout is None or layout == "text":
        return []
    found: list[Conversation] = []
    for row in rows:
        try:
            example = to_example(row, layout, section)
            messages = messages_of(example)
            answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
            if not answers or answers[-1] == 0:
                continue
            asked = messages[: answers[-1]]
            # What the training row has before its answer, which D10 holds against the prompt.
            row_ids = tokenizer.encode([tokenizer.prepare(example)])[0].input_ids
            prompt = renderer.render(asked, add_generation_prompt=True, tools=example.tools)
        except (RowError, WhetError):
            continue  # the findings name rows that a template refuses
        ids = tokenizer.tokenizer.encode(prompt, add_special_tokens=False).ids
        same = common_start(ids, row_ids)
        # A question's last token may grow together with the answer's first: what is trained then counts.
        found.append(
            Conversation(f"{row.file}:{row.line}", asked, example.tools, row_ids[:same] + ids[same:])
        )
        if len(found) == COMPARED:
            break
    return found


def _data_family(rows: Sequence[RawRow], recipe: Recipe, tokenizer: RowTokenizer) -> str | None:
    """The known template whose markers stand in a tenth of the rows, or more."""
    scan, markers, marked = MarkerScan(tokenizer.tokenizer), [], 0
    for row in rows:
        found = scan.written(" ".join(str(value) for value in row.value.values()))
        markers += found
        marked += bool(found)
    return rendered_family(list(dict.fromkeys(markers))) if marked * 10 >= len(rows) > 0 else None
