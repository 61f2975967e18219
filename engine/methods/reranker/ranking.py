"""How high held-out queries rank the documents that answer them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator

QUERIES = 200
"""Most queries, so that an evaluation stays short beside the training."""
NAME = "reranking"
SHOWN = ("ndcg@10", "mrr@10", "map")
FITS = 0.5
"""A scored document of more than this answers its query."""


def ranking_of(rows: Iterable[Mapping[str, Any]], candidates: int, batch_size: int) -> Any:
    """An evaluator over held-out rows; None where no query has both a document that fits and one that does
    not. nDCG: Järvelin and Kekäläinen 2002.

    Args:
        rows: of columns anchor, positive, and score or negatives.
        candidates: documents a query ranks; see :func:`samples_of`.
        batch_size: pairs at once.
    """
    samples = samples_of(rows, candidates)
    if not samples:
        return None
    return CrossEncoderRerankingEvaluator(
        samples=samples, at_k=10, name=NAME, batch_size=batch_size, write_csv=False
    )


def samples_of(rows: Iterable[Mapping[str, Any]], candidates: int) -> list[dict[str, Any]]:
    """Of each query what fits and what does not: its own rows' documents, filled up to ``candidates`` with
    those of the queries after it, which are taken not to fit."""
    fits: dict[str, dict[str, None]] = {}
    fails: dict[str, dict[str, None]] = {}
    for row in rows:
        query, document = row["anchor"], row["positive"]
        good = row.get("score", 1.0) > FITS
        (fits if good else fails).setdefault(query, {})[document] = None
        others = (value for name, value in row.items() if name.startswith("negative"))
        fails.setdefault(query, {}).update(dict.fromkeys(others))
    pool = list(
        dict.fromkeys(document for some in (fits, fails) for held in some.values() for document in held)
    )
    place = {document: number for number, document in enumerate(pool)}
    samples = []
    for query, right in list(fits.items())[:QUERIES]:
        wrong = {document: None for document in fails.get(query, {}) if document not in right}
        start = place[next(iter(right))]
        for document in pool[start + 1 :] + pool[:start]:
            if len(right) + len(wrong) >= candidates:
                break
            if document not in right:
                wrong[document] = None
        if wrong:
            samples.append({"query": query, "positive": list(right), "negative": list(wrong)})
    return samples


def shown(metrics: Mapping[str, float]) -> dict[str, float]:
    """The evaluator's numbers under their usual names."""
    found = {name: metrics.get(f"eval_{NAME}_{name}") for name in SHOWN}
    return {name: float(value) for name, value in found.items() if value is not None}
