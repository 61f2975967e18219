"""Quantise one GGUF with ``llama_model_quantize``. Request: source, out, type, threads (or null)."""

from __future__ import annotations

import ctypes
import os
import re
from typing import Any

from ...errors import WhetError
from .native import LlamaLog, Progress, import_llama_cpp, serve
from .types import find_type

TENSOR_LINE = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]")
FALLBACK_LINE = re.compile(r"(\d+) of \d+ tensor\(s\) required fallback")


def main(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Answers with ``fallbacks``: how many tensors llama.cpp gave another type because of their row size."""
    import_llama_cpp()
    import llama_cpp

    def on_line(line: str) -> None:
        if match := TENSOR_LINE.match(line):
            progress(float(match[1]), float(match[2]))

    kind = find_type(request["type"])
    log = LlamaLog(on_line)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = kind.file_type
    params.nthread = request.get("threads") or len(os.sched_getaffinity(0))
    code = llama_cpp.llama_model_quantize(
        os.fsencode(request["source"]), os.fsencode(request["out"]), ctypes.byref(params)
    )
    if code != 0:
        raise WhetError(
            "gguf.quantize_failed",
            f"llama.cpp could not quantise {request['source']} to {kind.name}: {log.reason()}",
            "q8_0 and f16 work for every shape; `whet doctor` shows the llama.cpp build.",
        )
    fallbacks = [int(match[1]) for line in log.lines if (match := FALLBACK_LINE.search(line))]
    return {"fallbacks": sum(fallbacks)}


if __name__ == "__main__":
    serve(main)
