"""Quantise one GGUF with ``llama_model_quantize``. Request: source, out, type, threads, importance."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from typing import Any

from ...errors import WhetError
from .importance import Importance
from .native import LlamaLog, Progress, import_llama_cpp
from .types import find_type

TENSOR_LINE = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]")
FALLBACK_LINE = re.compile(r"(\d+) of \d+ tensor\(s\) required fallback")
BUFFER_BYTES = 256 << 20
"""Rows of a tensor that are worked on at a time; llama.cpp's own 8 GiB would hold any tensor whole."""


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
    params.max_buf_size = BUFFER_BYTES
    if kind.ends is not None:
        params.output_tensor_type = params.token_embedding_type = _tensor_type(kind.ends)
    kept = None
    if request.get("importance"):
        kept = _give(params, Importance.load(Path(request["importance"])))
    code = llama_cpp.llama_model_quantize(
        os.fsencode(request["source"]), os.fsencode(request["out"]), ctypes.byref(params)
    )
    del kept  # until here llama.cpp has read from it
    if code != 0:
        raise WhetError(
            "gguf.quantize_failed",
            f"llama.cpp could not quantise {request['source']} to {kind.name}: {log.reason()}",
            "q8_0 and f16 work for every shape; `whet doctor` shows the llama.cpp build.",
        )
    fallbacks = [int(match[1]) for line in log.lines if (match := FALLBACK_LINE.search(line))]
    return {"fallbacks": sum(fallbacks)}


def _give(params: Any, importance: Importance) -> tuple[Any, ...]:
    """Hand the matrix to the quantiser, and note in the file what it was made from.

    Returns what must live until the quantiser has returned.
    """
    import llama_cpp

    means = importance.means()
    entries = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()  # the last one, empty, ends it
    pointer = ctypes.POINTER(ctypes.c_float)
    for entry, (name, values) in zip(entries, means.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(pointer)
    notes: Any = (llama_cpp.llama_model_kv_override * 3)()  # and so here
    notes[0].tag, notes[0].key = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, b"quantize.imatrix.dataset"
    notes[0].value.val_str = importance.origin.encode()[:127].decode("utf-8", "ignore").encode()
    notes[1].tag, notes[1].key = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, b"quantize.imatrix.entries_count"
    notes[1].value.val_i64 = len(means)
    params.imatrix, params.kv_overrides = entries, notes
    return means, entries, notes


def _tensor_type(name: str) -> int:
    from gguf import GGMLQuantizationType

    return int(GGMLQuantizationType[name.upper()])
