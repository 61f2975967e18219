"""The far end of :func:`.probes.run_llama`: llama.cpp quantises, loads and runs a model of one layer.

Random weights, 32 sub-blocks wide, so that q4_K fits and the batched product takes the path that training's
exports take. Each step is named on a JSON line before it is taken: a crash is then known by its step.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WIDTH, HEADS, WORDS, CONTEXT, PROMPT = 256, 4, 288, 64, 48
Q4_K_M = 15


def main(folder: Path) -> None:
    """All steps in ``folder``, then what the build says of itself."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        _steps(folder, say)
    except Exception as error:  # whatever it is, it is what the probe is for
        say(error=f"{type(error).__name__}: {' '.join(str(error).split())}")


def _steps(folder: Path, say: Callable[..., None]) -> None:
    say(step="import")
    import llama_cpp

    said = llama_cpp.llama_print_system_info().decode()
    say(
        version=llama_cpp.__version__,
        features=re.findall(r"(\w+) = 1\b", said),
        gpu_offload=bool(llama_cpp.llama_supports_gpu_offload()),
    )
    say(step="quantise")
    whole, small = folder / "whole.gguf", folder / "small.gguf"
    write_model(whole)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = Q4_K_M, 1
    code = llama_cpp.llama_model_quantize(os.fsencode(whole), os.fsencode(small), ctypes.byref(params))
    if code:
        raise RuntimeError(f"llama_model_quantize returned {code}")
    say(step="load")
    llama = llama_cpp.Llama(
        str(small), n_ctx=CONTEXT, n_batch=PROMPT, n_threads=1, n_threads_batch=1, logits_all=True,
        n_gpu_layers=0, verbose=False,
    )  # fmt: skip
    say(step="run")
    llama.eval(list(range(3, 3 + PROMPT)))
    llama.eval([5])
    _look(llama.scores[: PROMPT + 1])
    say(step="done")


def _look(scores: Any) -> None:
    import numpy as np

    if not np.isfinite(scores).all() or not scores.std(axis=1).all():
        raise RuntimeError("the quantised model's answers are not numbers")


def write_model(path: Path) -> None:
    """A Llama of one layer in float32 with a vocabulary of bytes."""
    import numpy as np
    from gguf import GGUFWriter

    draw = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"word{number}" for number in range(WORDS - len(tokens))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (WORDS - 259)
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(WORDS)])
    writer.add_token_types(kinds)
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {"token_embd": (WORDS, WIDTH), "output": (WORDS, WIDTH)}
    shapes |= {f"blk.0.{name}": (WIDTH, WIDTH) for name in square}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.normal(0, 0.1, shape).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
