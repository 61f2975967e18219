"""An adapter over its base as llama.cpp computes them, a process of its own since llama.cpp may crash.

Request: base and adapter (GGUF files), work (folder that adapter_reference.py filled), threads. Run by
adapter_proof.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import WhetError
from ..gguf.native import LlamaLog, Progress, import_llama_cpp

BATCH = 64
"""Positions whose logits llama.cpp holds at once."""
Array = np.ndarray[Any, Any]


def main(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Answers with KL(PEFT || llama.cpp) and KL(PEFT || base alone), in nats over the same positions."""
    import_llama_cpp()
    from ..gguf.llama import Llama

    work, log = Path(request["work"]), LlamaLog()
    sequences = json.loads((work / "sequences.json").read_text(encoding="utf-8"))
    trained_TV, base_TV = (np.load(work / f"{name}.npy", mmap_mode="r") for name in ("trained", "base"))
    try:
        llama = Llama(
            request["base"],
            lora_path=request["adapter"],
            n_ctx=max(map(len, sequences)) + 8,
            n_batch=BATCH,
            n_ubatch=BATCH,
            n_threads=request["threads"],
            n_threads_batch=request["threads"],
            logits_all=True,
            type_k=0,
            type_v=0,
            flash_attn=False,
            n_gpu_layers=0,
            verbose=True,
        )
    except (ValueError, RuntimeError) as error:
        raise WhetError(
            "smoke.unloadable", f"llama.cpp cannot lay the adapter over its base: {log.reason()}", ""
        ) from error
    differs, moved, done = [], [], 0
    for number, ids in enumerate(sequences, 1):
        llama.reset()
        llama.eval(ids)
        measured_TV = log_softmax(np.array(llama.scores[: len(ids)]))
        here = slice(done, done + len(ids))
        differs.append(divergence(trained_TV[here], measured_TV))
        moved.append(divergence(trained_TV[here], base_TV[here]))
        done += len(ids)
        progress(number, len(sequences))
    llama.close()
    kl_T = np.concatenate(differs)
    return {
        "mean": float(kl_T.mean()),
        "max": float(kl_T.max()),
        "moved": float(np.concatenate(moved).mean()),
        "positions": done,
    }


def log_softmax(logits_TV: Array) -> Array:
    shifted = logits_TV.astype(np.float64) - logits_TV.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def divergence(p_TV: Array, q_TV: Array) -> Array:
    """[T] KL(p || q)."""
    p_TV = p_TV.astype(np.float64)
    result: Array = (np.exp(p_TV) * (p_TV - q_TV)).sum(axis=-1)
    return result
