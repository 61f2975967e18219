"""A loaded embedding model beside plain sentence-transformers, before its first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from ...checks.embeddings import KeptVectors
from ...models.memory import BYTES
from ...models.sentence_folder import MODULES
from ...plan import Plan

TEXTS, TOKENS = 16, 256
"""So many texts, of so many tokens at most: enough to see pooling and layers, and soon done."""
ROOM = 0.8
"""Share of the free memory that both models may take."""
STORED = {"bfloat16": "bf16", "float16": "fp16"}


def first_texts(rows: Dataset) -> list[str]:
    """A few of a run's texts, of all columns that hold any."""
    names = [name for name in rows.column_names if name not in ("row", "score", "label")]
    return [row[name] for row in rows.select(range(min(TEXTS, len(rows)))) for name in names][:TEXTS]


def refusal(plan: Plan, folder: Path) -> str | None:
    """Why the two are not compared; None where they can be."""
    if not (folder / MODULES).is_file():
        return f"no {MODULES}"
    if plan.model.quantization is not None:
        return f"the checkpoint itself is quantised ({plan.model.quantization})"
    stored = plan.model.parameters.total * BYTES[STORED.get(plan.model.dtype, "fp32")]
    held = sum(plan.memory.components[name] for name in ("base", "adapter", "runtime"))
    if held + stored > ROOM * plan.memory.available:
        return f"{(held + stored) / 1e9:.1f} GB for both, {plan.memory.available / 1e9:.1f} GB free"
    return None


def kept_vectors(
    model: SentenceTransformer, plan: Plan, folder: Path, trusted: bool, texts: list[str]
) -> KeptVectors:
    """``model``, freshly loaded, against ``folder`` as sentence-transformers itself loads it; freed after."""
    device = torch.device(model.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        plain = SentenceTransformer(
            str(folder), device=str(device), local_files_only=True, trust_remote_code=trusted
        )
    limit = min(TOKENS, plan.resolved.max_length)
    cosines = torch.cosine_similarity(_vectors(model, texts, limit), _vectors(plain, texts, limit))
    cosines = cosines.nan_to_num(0.0)
    del plain
    if device.type == "cuda":
        torch.cuda.empty_cache()
    resolved = plan.resolved
    return KeptVectors(plan.recipe, resolved.base_precision, resolved.compute_dtype, tuple(cosines.tolist()))


def _vectors(model: SentenceTransformer, texts: list[str], limit: int) -> torch.Tensor:
    """Texts x dimensions, in fp32, without prompts; the model is left as it was."""
    before, training = model.max_seq_length, model.training
    model.max_seq_length = limit
    options: dict[str, Any] = {"prompt": "", "convert_to_tensor": True, "show_progress_bar": False}
    vectors = model.encode(texts, batch_size=TEXTS, **options)
    model.max_seq_length = before
    model.train(training)
    return vectors.float()
