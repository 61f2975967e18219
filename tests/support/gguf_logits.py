"""llama.cpp's log-probabilities for tests, computed in a process of its own.

from support.gguf_logits import llama_log_probs, model_log_probs, kl
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def llama_log_probs(path: Path, ids: list[int], adapter: Path | None = None) -> Array:
    """[tokens, vocabulary] float64 of the GGUF at ``path``, with a float32 cache and no flash attention;
    ``adapter`` is a GGUF laid over it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "log_probs.npy"
        command = [sys.executable, "-P", __file__, str(path), str(out), json.dumps(ids)]
        command += [str(adapter)] if adapter else []
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"llama.cpp ended with {done.returncode}: {done.stderr[-2000:]}"
        result: Array = np.load(out)
        return result


def model_log_probs(folder: Path, ids: list[int]) -> Array:
    """The same of the transformers model in ``folder``, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return log_softmax(model(torch.tensor([ids])).logits[0].numpy())


def log_softmax(logits: Array) -> Array:
    x = logits.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    result: Array = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return result


def kl(p: Array, q: Array) -> float:
    """Mean over tokens of KL(p || q), in nats."""
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def main(path: str, out: str, ids: list[int], adapter: str | None = None) -> None:
    import llama_cpp

    llama = llama_cpp.Llama(
        path,
        n_ctx=len(ids) + 8,
        logits_all=True,
        type_k=0,
        type_v=0,
        flash_attn=False,
        n_threads=1,
        verbose=True,
        lora_path=adapter,
    )
    llama.eval(ids)
    np.save(out, log_softmax(np.array(llama.scores[: len(ids)])))
    llama.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), *sys.argv[4:])
