"""A model's files against one another and against the data: rows, lengths, ties, names of weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from shlex import quote

from ..adapted import adapter_parts
from ..data.inspection import DataReport
from ..findings import Finding, Fix
from ..models.facts import ModelFacts
from ..models.weight_facts import WeightFacts
from ..recipe import Recipe
from .registry import PlanFacts, check

RESIZE = (
    'python -c "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
    "p = sys.argv[1]; t = T.from_pretrained(p); "
    "m = M.from_pretrained(p, dtype='auto', use_safetensors=True); "
    "m.resize_token_embeddings({rows}); m.save_pretrained(p + '-resized'); "
    "t.save_pretrained(p + '-resized')\" {path}"
)
"""The path goes behind it, quoted for the shell: within the program, a quote in a name would end the text."""


@dataclass(frozen=True)
class Files:
    """What these checks look at, before the run and, where weights were downloaded since, in the worker."""

    recipe: Recipe
    model: ModelFacts
    report: DataReport
    weights: WeightFacts


IMAGE_ROWS = {"mllama": 8}
"""Rows of the embedding for images, which its head, and so vocab_size, has not."""


@check("load", "L01", "L03", "L04", "E08")
def files_agree(facts: PlanFacts) -> Iterator[Finding]:
    """The checks of this module, where the planner could read the files."""
    if facts.weights is not None:
        yield from look_at(Files(facts.recipe, facts.model, facts.report, facts.weights))


def look_at(files: Files) -> Iterator[Finding]:
    """All findings about the files."""
    for part in (unwritten_rows, lengths, tied_apart, weights_by_name):
        yield from part(files)


def unwritten_rows(files: Files) -> Iterator[Finding]:
    """L01: tokens the data uses whose row was never trained and will not be."""
    adapter, weights = files.recipe.adapter, files.weights
    whole = adapter_parts(adapter)[1]
    if adapter.kind == "none":
        return
    ends = {"embed_tokens": weights.embedding, "lm_head": weights.head}
    trains = {name: name in whole or (files.model.tied and bool(whole)) for name in ends}
    frozen = {name: rows for name, rows in ends.items() if rows and not trains[name] and _count(rows)}
    if not frozen:
        return
    first = next(iter(frozen.values()))
    words = list({**first.empty, **first.alike})
    kinds = [f"{rows.empty_count} zero" for rows in frozen.values() if rows.empty_count][:1]
    kinds += [f"{rows.alike_count} equal to another's" for rows in frozen.values() if rows.alike_count][:1]
    ends_to_train = ["embed_tokens"] if files.model.tied else ["embed_tokens", "lm_head"]
    yield Finding(
        id="L01",
        severity="warning",
        title=f"The data uses tokens whose rows were never trained, and {' and '.join(frozen)} are frozen: "
        f"{', '.join(words[:3])} ({', '.join(kinds)}).",
        evidence={
            name: {"zero": rows.empty, "equal": rows.alike, "count": _count(rows)}
            for name, rows in frozen.items()
        },
        fix=Fix(
            text="Train embedding and head beside the adapter, or take the instruct model, whose rows are.",
            patch={"adapter.modules_to_save": list(dict.fromkeys([*whole, *ends_to_train]))},
        ),
    )


def _count(rows: object) -> int:
    counted: int = rows.empty_count + rows.alike_count  # type: ignore[attr-defined]
    return counted


@check("load", "L02")
def ids_have_rows(facts: PlanFacts) -> Iterator[Finding]:
    """Ids beyond the embedding: a device-side assert on a GPU, long after the start."""
    splits = {"train": facts.report.train, "eval": facts.report.eval}
    largest = {name: split.max_token_id for name, split in splits.items() if split is not None}
    rows = facts.model.embedding_rows
    beyond = {name: id for name, id in largest.items() if id >= rows}
    if beyond:
        yield Finding(
            id="L02",
            severity="error",
            title=f"The rows hold token id {max(beyond.values())}, the embedding has {rows} rows.",
            evidence={"largest_id": beyond, "embedding_rows": rows, "vocab_size": facts.model.vocab_size},
            fix=Fix(
                text="Put the model's own tokenizer beside it; or, if tokens were added on purpose, resize "
                "the embedding, name the new folder as model.name and train embedding and head.",
                command=RESIZE.format(path=quote(str(facts.model.path)), rows=max(beyond.values()) + 1),
            ),
        )


def lengths(files: Files) -> Iterator[Finding]:
    """L03: what the tokenizer, config.json, embedding and head say of the vocabulary."""
    model, weights = files.model, files.weights
    evidence = {
        "tokenizer": weights.tokenizer_rows,
        "vocab_size": model.vocab_size,
        "embedding_rows": weights.embedding_rows,
        "head_rows": weights.head_rows,
    }
    rows = weights.embedding_rows
    stored = {count for count in (rows, weights.head_rows) if count is not None}
    rightly = {model.vocab_size, model.vocab_size + IMAGE_ROWS.get(model.model_type, 0)}
    if not stored <= rightly:
        yield Finding(
            id="L03",
            severity="error",
            title=f"config.json says vocab_size {model.vocab_size}, the files hold "
            f"{' and '.join(map(str, sorted(stored)))} rows: the weights cannot be loaded.",
            evidence=evidence,
            fix=Fix(
                text=f'Write "vocab_size": {rows} into config.json.'
                if len(stored) == 1
                else "Embedding and head differ in rows: save the model again, resized as a whole."
            ),
        )
        return
    limit = rows or model.vocab_size
    beyond = {name: id for name, id in weights.special_ids.items() if id >= limit}
    used = max(files.report.train.max_token_id, files.report.eval.max_token_id if files.report.eval else -1)
    if beyond and used < limit:  # else L02 says it
        yield Finding(
            id="L03",
            severity="warning",
            title=f"{' and '.join(beyond)} of the tokenizer {'has' if len(beyond) == 1 else 'have'} no row "
            f"in the embedding ({', '.join(map(str, beyond.values()))} of {limit}).",
            evidence={**evidence, **beyond},
            fix=Fix(
                text="Let tokenizer_config.json name a token the model has, e.g. its end token as pad_token; "
                "or resize the embedding and train both ends.",
                command=RESIZE.format(path=quote(str(model.path)), rows=weights.tokenizer_rows),
            ),
        )
    elif weights.tokenizer_rows > limit and used < limit:
        yield Finding(
            id="L03",
            severity="note",
            title=f"The tokenizer knows {weights.tokenizer_rows - limit} ids more than the embedding has "
            "rows; the data uses none of them.",
            evidence=evidence,
        )


def tied_apart(files: Files) -> Iterator[Finding]:
    """L04: config.json ties head and embedding, the files hold two different ones."""
    if files.model.tied and files.weights.ends_differ:
        yield Finding(
            id="L04",
            severity="error",
            title="config.json ties the head to the embedding, but the files hold a head of its own with "
            "other numbers: it was trained apart, and whoever follows the flag throws it away.",
            evidence={"tie_word_embeddings": True, "head_rows": files.weights.head_rows},
            fix=Fix(text='Write "tie_word_embeddings": false into config.json.'),
        )


def weights_by_name(files: Files) -> Iterator[Finding]:
    """E08: layers that the files lack or hold in another shape; they would start from random numbers."""
    weights = files.weights
    for names, what in ((weights.missing, "lack"), (weights.misshapen, "hold in another shape")):
        if names:
            yield Finding(
                id="E08",
                severity="error",
                title=f"The weight files {what} {len(names)} of the model's weights, e.g. {names[0]}.",
                evidence={"weights": names[:10], "count": len(names), "layers": files.model.layers},
                fix=Fix(
                    text="Download the model again, whole; or mend config.json where it describes another "
                    "model than the weights are."
                ),
            )
