"""An embedding GGUF as llama.cpp computes it: the proof's other side, a process of its own.

Request: gguf, work (folder with the reference), out (JSON lines), source (the f16 file that
this one was made from, or null), threads. Each finished stage is one line
``{"stage": ..., "value": ...}`` in ``out``, so that a crash later loses none of it. Run by smoke.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import WhetError
from .gguf.native import LlamaLog, Progress, import_llama_cpp
from .smoke_metadata import read_metadata
from .smoke_weights import compare_weights

ROOM = 64
"""Tokens more than the reference's longest text: a wrong tokenizer may make more of it."""
SEQUENCES = 256
"""llama-cpp-python makes room for so many texts at once; llama.cpp aborts unless its batch is a multiple."""


def main(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    import_llama_cpp()
    reference = json.loads((Path(request["work"]) / "reference.json").read_text(encoding="utf-8"))
    measurement = EmbeddingMeasurement(request["gguf"], reference, request["threads"])
    vectors_ND = np.load(Path(request["work"]) / "vectors.npy")
    stages: dict[str, Callable[[], Any]] = {
        "metadata": partial(read_metadata, Path(request["gguf"])),
        "load": measurement.load,
        "vocabulary": measurement.vocabulary,
        "vectors": partial(measurement.vectors, vectors_ND),
        "neighbours": partial(measurement.neighbours, vectors_ND),
    }
    if request["source"]:
        stages["weights"] = partial(compare_weights, Path(request["gguf"]), Path(request["source"]))
    with open(request["out"], "w", encoding="utf-8") as out:
        for number, (name, stage) in enumerate(stages.items(), 1):
            # First the name alone: a crash inside the stage is then known by it.
            print(json.dumps({"stage": name}), file=out, flush=True)
            print(json.dumps({"stage": name, "value": stage()}), file=out, flush=True)
            progress(number, len(stages))
    return {}


class EmbeddingMeasurement:
    """One loaded GGUF and the reference's texts."""

    def __init__(self, gguf: str, reference: dict[str, Any], threads: int) -> None:
        self.gguf, self.reference, self.threads = gguf, reference, threads
        self.llama: Any = None
        self.computed: dict[int, np.ndarray] = {}

    def load(self) -> dict[str, Any]:
        """Everything in float32 but the weights, no flash attention, no GPU; pooling as the file says."""
        from .gguf.llama import Llama

        log = LlamaLog()
        longest = max(len(row["ids"]) for row in self.reference["rows"]) + ROOM
        length = -(-longest // SEQUENCES) * SEQUENCES
        try:
            self.llama = Llama(
                self.gguf,
                n_ctx=length,
                n_batch=length,
                n_ubatch=length,
                n_threads=self.threads,
                n_threads_batch=self.threads,
                embedding=True,
                type_k=0,
                type_v=0,
                flash_attn=False,
                n_gpu_layers=0,
                verbose=True,
            )
        except ValueError as error:
            raise WhetError(
                "smoke.unloadable", f"llama.cpp cannot load {self.gguf}: {log.reason()}"
            ) from error
        self.log, self.length = log, length
        return {"n_vocab": self.llama.n_vocab(), "pooling": int(self.llama.pooling_type())}

    def tokenize(self, text: str, add_special: bool = False) -> list[int]:
        return list(self.llama.tokenize(text.encode(), add_bos=add_special, special=True))

    def vocabulary(self) -> list[dict[str, Any]]:
        return [
            {"ids": self.tokenize(entry["text"]), "special": self.tokenize(entry["text"], True)}
            for entry in self.reference["texts"]
        ]

    def vectors(self, wanted_ND: np.ndarray) -> dict[str, Any]:
        """Each text's vector from the ids that the reference saw: the weights alone, not the tokenizer."""
        rows = self.reference["rows"]
        given = [self._vector(row["ids"]) for row in rows]
        if any(vector is None for vector in given):
            return {"pooled": False}
        given_ND = np.stack([vector for vector in given if vector is not None])
        self.computed = dict(enumerate(given_ND))
        if given_ND.shape != wanted_ND.shape:
            return {"pooled": True, "width": given_ND.shape[1], "expected_width": wanted_ND.shape[1]}
        cosine_N = _cosine(given_ND, wanted_ND)
        length_N = np.linalg.norm(given_ND, axis=1) / np.linalg.norm(wanted_ND, axis=1)
        worst = int(cosine_N.argmin())
        return {
            "pooled": True,
            "texts": len(rows),
            "mean": float(cosine_N.mean()),
            "min": float(cosine_N.min()),
            "worst_text": rows[worst]["text"][:80],
            "length": [float(length_N.min()), float(length_N.max())],
            "longest": max(len(row["ids"]) for row in rows),
            "finite": bool(np.isfinite(given_ND).all()),
        }

    def neighbours(self, wanted_ND: np.ndarray) -> dict[str, Any]:
        """Each text's nearest other text, from llama.cpp's own ids: what a search would find."""
        rows = self.reference["rows"]
        kept = [number for number, row in enumerate(rows) if not row["cut"]]
        if len(self.computed) != len(rows):
            return {"pooled": False}
        given = [self._own_vector(number) for number in kept]
        wanted_NN = _similarities(wanted_ND[kept], self.reference["normalize"])
        nearest_N = _similarities(np.stack(given), self.reference["normalize"]).argmax(axis=1)
        best_N = wanted_NN.max(axis=1)
        scale = 1.0 if self.reference["normalize"] else float(np.abs(best_N).max())
        lost_N = (best_N - wanted_NN[np.arange(len(kept)), nearest_N]) / scale
        same_N = nearest_N == wanted_NN.argmax(axis=1)
        worst = int(lost_N.argmax())
        return {
            "pooled": True,
            "texts": len(kept),
            "same": int(same_N.sum()),
            "lost_mean": float(lost_N.mean()),
            "lost_max": float(lost_N.max()),
            "example": [rows[kept[i]]["text"][:80] for i in (worst, int(nearest_N[worst]))],
        }

    def _own_vector(self, number: int) -> np.ndarray:
        ids = self.tokenize(self.reference["rows"][number]["text"], True)
        if ids == self.reference["rows"][number]["ids"]:
            return self.computed[number]
        vector = self._vector(ids[: self.length])
        assert vector is not None  # pooled before
        return vector

    def _vector(self, ids: list[int]) -> np.ndarray | None:
        """[width] as llama.cpp pools it; None when the file asks for no pooling."""
        import llama_cpp

        context = self.llama._ctx.ctx
        memory = llama_cpp.llama_get_memory(context)
        if memory is not None:  # encoders keep none
            llama_cpp.llama_memory_clear(memory, True)
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        code = llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids)))
        if code != 0:
            raise WhetError("smoke.decode", f"llama_decode gave {code}: {self.log.reason()}")
        found = llama_cpp.llama_get_embeddings_seq(context, 0)
        if not found:
            return None
        width = llama_cpp.llama_model_n_embd_out(self.llama.model)
        return np.array(found[:width], dtype=np.float64)


def _cosine(left_ND: np.ndarray, right_ND: np.ndarray) -> np.ndarray:
    """[N], row by row."""
    result: np.ndarray = (_unit(left_ND) * _unit(right_ND)).sum(axis=1)
    return result


def _similarities(vectors_ND: np.ndarray, normalize: bool) -> np.ndarray:
    """[N, N] products, of unit vectors where the model normalises; no text is its own neighbour."""
    vectors_ND = _unit(vectors_ND) if normalize else vectors_ND.astype(np.float64)
    products_NN: np.ndarray = vectors_ND @ vectors_ND.T
    np.fill_diagonal(products_NN, -np.inf)
    return products_NN


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    wide_ND = vectors_ND.astype(np.float64)
    result: np.ndarray = wide_ND / np.maximum(np.linalg.norm(wide_ND, axis=1, keepdims=True), 1e-12)
    return result
