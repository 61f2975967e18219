"""Embedding models: right answers that count as wrong, prompts, and vectors that loading must not change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..findings import Finding, Fix
from ..methods.embedding.section import EmbeddingSection
from ..recipe import Recipe
from .registry import PlanFacts, check, worst_first

MEETING = 0.01
"""Share of rows beside a false negative from which on it is said; leaving them apart costs nothing."""
WIDE = ("fp32", "bf16", "fp16")
ALIKE = dict.fromkeys(WIDE, 0.999) | {"int8": 0.98, "fp8": 0.98, "nf4": 0.9}
"""How the base is held -> least cosine with plain sentence-transformers. all-MiniLM-L6-v2 keeps 0.9999 in
bf16, 0.9994 in int8 and 0.962 in nf4."""

SEARCH = "Represent this sentence for searching relevant passages: "
INSTRUCT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
EXPECTED: tuple[tuple[str, dict[str, str]], ...] = (
    (r"(^|[-_])e5-(mistral|.*instruct)", {"query": INSTRUCT}),  # arXiv:2401.00368
    (r"(^|[-_])e5-", {"query": "query: ", "document": "passage: "}),  # arXiv:2212.03533, 2402.05672
    (r"^bge-(small|base|large)-en", {"query": SEARCH}),  # arXiv:2309.07597 and the models' cards
    (r"^bge-(small|base|large)-zh", {"query": "为这个句子生成表示以用于检索相关文章："}),
    (r"^mxbai-embed-", {"query": SEARCH}),  # the models' cards
    (r"embeddinggemma", {"query": "task: search result | query: ", "document": "title: none | text: "}),
    # arXiv:2509.20354
    (r"qwen3-embedding", {"query": INSTRUCT.rstrip()}),  # arXiv:2506.05176
    (r"^(nomic-embed-text|modernbert-embed)",
     {"query": "search_query: ", "document": "search_document: "}),  # arXiv:2402.01613
)  # fmt: skip
"""Name of a model, in lower case -> what it was trained with before its texts. The first that fits counts."""


def expected_prompts(name: str) -> dict[str, str]:
    """What a model of this name or path was trained with; empty where none is known."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    return next((prompts for pattern, prompts in EXPECTED if re.search(pattern, last)), {})


@check("data", "D14")
def false_negatives(facts: PlanFacts) -> Iterator[Finding]:
    """The same text twice in a batch is a right answer of one row and a wrong answer of another."""
    seen = facts.batches
    if seen is None or seen.expected <= MEETING:
        return
    yield Finding(
        id="D14",
        severity="warning",
        title=f"{seen.repeated} of {seen.rows} rows share a text with another row; in batches of "
        f"{seen.batch_size}, {seen.expected:.1%} of rows meet one, whose answer then counts as wrong.",
        evidence={
            "rows": seen.rows,
            "repeated": seen.repeated,
            "batch_size": seen.batch_size,
            "expected": round(seen.expected, 4),
        },
        fix=Fix(text="Keep such rows in different batches.", patch={"method.no_duplicates": True}),
    )


@check("data", "D14")
def prompts_there(facts: PlanFacts) -> Iterator[Finding]:
    """Known models were trained with prompts, which neither their folder nor the recipe names."""
    section, seen = facts.recipe.method, facts.batches
    if seen is None or not isinstance(section, EmbeddingSection):
        return
    asked = _asked(section)
    missing = {
        role: text
        for role, text in expected_prompts(facts.recipe.model.name).items()
        if role not in seen.prompts and asked[role] is None
    }
    if missing:
        said = " and ".join(f"{text!r} before each {role}" for role, text in missing.items())
        yield Finding(
            id="D14",
            severity="warning",
            title=f"This model was trained with {said}; neither its folder nor the recipe says so.",
            evidence={"rows": seen.rows, "expected": missing, "configured": dict(seen.prompts)},
            fix=Fix(
                text='Train with them as well; "" where none is meant, as for texts that are alike.',
                patch={f"method.{role}_prompt": text for role, text in missing.items()},
            ),
        )


@check("data", "D14")
def other_prompts(facts: PlanFacts) -> Iterator[Finding]:
    """The recipe's prompts against those of the model's folder."""
    section, seen = facts.recipe.method, facts.batches
    if seen is None or not isinstance(section, EmbeddingSection):
        return
    for role, asked in _asked(section).items():
        own = seen.prompts.get(role)
        if own is not None and asked is not None and asked != own:
            yield Finding(
                id="D14",
                severity="note",
                title=f"method.{role}_prompt is {asked!r}; the model's own is {own!r}.",
                evidence={"rows": seen.rows, "asked": asked, "configured": own},
                fix=Fix(
                    text="Leave it out for the model's own, unless another is meant.",
                    patch={f"method.{role}_prompt": None},
                ),
            )


def _asked(section: EmbeddingSection) -> dict[str, str | None]:
    return {"query": section.query_prompt, "document": section.document_prompt}


@dataclass(frozen=True)
class KeptVectors:
    """A loaded model beside plain sentence-transformers on the same folder.

    Args:
        recipe: of the run.
        held: how the base weights are held, e.g. ``bf16`` or ``nf4``.
        compute: type of the products, ``bf16``, ``fp16`` or ``fp32``.
        cosines: between the two vectors of each text; 0 where one is not finite.
    """

    recipe: Recipe
    held: str
    compute: str
    cosines: tuple[float, ...]


@check("load", "L10")
def vectors_kept(facts: KeptVectors) -> Iterator[Finding]:
    """Before the first step the model must embed as its folder does."""
    needed, least = ALIKE[facts.held], min(facts.cosines)
    if least >= needed:
        return
    yield Finding(
        id="L10",
        severity="error" if facts.held in WIDE else "warning",
        title=f"Loaded in {facts.held}, the model embeds otherwise than plain sentence-transformers: cosine "
        f"{least:.4f} at worst, {needed} is needed.",
        evidence={
            "texts": len(facts.cosines),
            "least": round(least, 5),
            "mean": round(sum(facts.cosines) / len(facts.cosines), 5),
            "needed": needed,
        },
        fix=_keeping(facts),
    )


def _keeping(facts: KeptVectors) -> Fix:
    """By what most likely did it."""
    section = facts.recipe.method
    if isinstance(section, EmbeddingSection) and section.pooling != "auto":
        return Fix(text="Keep the pooling of the model's folder.", patch={"method.pooling": "auto"})
    if facts.held not in WIDE:
        return Fix(text="Hold the weights in 16 bits.", patch={"model.precision": "auto"})
    if facts.compute != "fp32":
        return Fix(text="Compute in fp32.", patch={"training.precision": "fp32"})
    return Fix(
        text="Run the plain-torch references of whet's kernels, which tells kernels and loading apart.",
        command="WHET_KERNELS=reference whet resume last",
    )


def look_at_vectors(facts: KeptVectors) -> list[Finding]:
    """What a loaded embedding model's vectors say of how it was loaded."""
    return worst_first(vectors_kept.run(facts))
