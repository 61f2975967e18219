"""How well questions find their answers among held-out rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

MOST = 5_000
"""Texts searched in, so that an evaluation stays short beside the training."""
NAME = "retrieval"
SHOWN = {
    "cosine_ndcg@10": "ndcg@10",
    "cosine_mrr@10": "mrr@10",
    "cosine_recall@10": "recall@10",
    "cosine_accuracy@1": "accuracy@1",
}


def retrieval_of(rows: Dataset, prompts: Mapping[str, str | None], batch_size: int) -> Any:
    """An evaluator over pairs: every anchor is a query, its positives are relevant, all texts are searched.

    None where fewer than two different documents are there. nDCG: Järvelin and Kekäläinen 2002.
    """
    texts = [name for name in rows.column_names if name not in ("row", "score", "label")]
    if texts[:2] != ["anchor", "positive"] or "score" in rows.column_names:
        return None
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    relevant: dict[str, set[str]] = {}
    for row in rows:
        others = [row[name] for name in texts[1:]]
        if len(documents) + len(others) > MOST:
            break
        for text in others:
            documents.setdefault(text, f"d{len(documents)}")
        query = queries.setdefault(row["anchor"], f"q{len(queries)}")
        relevant.setdefault(query, set()).add(documents[row["positive"]])
    if len(documents) < 2:
        return None
    return InformationRetrievalEvaluator(
        queries={number: text for text, number in queries.items()},
        corpus={number: text for text, number in documents.items()},
        relevant_docs=relevant,
        mrr_at_k=[10],
        ndcg_at_k=[10],
        accuracy_at_k=[1],
        precision_recall_at_k=[10],
        map_at_k=[10],
        batch_size=batch_size,
        name=NAME,
        write_csv=False,
        query_prompt=prompts.get("query"),
        corpus_prompt=prompts.get("document"),
    )


def shown(metrics: dict[str, float]) -> dict[str, float]:
    """The evaluator's numbers under their usual names."""
    found = {name: metrics.get(f"eval_{NAME}_{key}") for key, name in SHOWN.items()}
    return {name: float(value) for name, value in found.items() if value is not None}
