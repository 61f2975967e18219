"""What llama.cpp itself multiplies each weight with: the sums an importance matrix should hold, from outside.

from support.gguf_inputs import llama_input_squares
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
F32 = 0
MUL_MAT, MUL_MAT_ID = 29, 30
"""Numbers of the two operations in ggml's enumeration."""


class Tensor(ctypes.Structure):
    """A ``ggml_tensor``, as far as its name."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


def llama_input_squares(path: Path, rows: list[list[int]]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Sums of squares [experts, columns] and counts [experts] of every weight of a layer, in a process of its
    own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "squares.npz"
        command = [sys.executable, "-P", __file__, str(path), str(out), json.dumps(rows)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"llama.cpp ended with {done.returncode}: {done.stderr[-2000:]}"
        with np.load(out) as found:
            names = [name.removeprefix("sums/") for name in found if name.startswith("sums/")]
            return {n: found[f"sums/{n}"] for n in names}, {n: found[f"counts/{n}"] for n in names}


class Listener:
    """Adds up the inputs of every multiplication by a weight of a layer."""

    def __init__(self) -> None:
        self.sums: dict[str, Array] = {}
        self.counts: dict[str, Array] = {}

    def hear(self, address: int, ask: bool, data: object) -> bool:
        tensor = ctypes.cast(address, ctypes.POINTER(Tensor)).contents
        weight = tensor.src[0].contents if tensor.op in (MUL_MAT, MUL_MAT_ID) else None
        wanted = weight is not None and weight.name.startswith(b"blk.")
        if wanted and not ask:
            assert weight is not None
            self._add(weight.name.decode(), tensor, weight)
        return wanted if ask else True

    def _add(self, name: str, tensor: Tensor, weight: Tensor) -> None:
        columns, experts = weight.ne[0], weight.ne[2]
        sums = self.sums.setdefault(name, np.zeros((experts, columns)))
        counts = self.counts.setdefault(name, np.zeros(experts))
        x = _values(tensor.src[1].contents, np.float32).astype(np.float64) ** 2  # [tokens, used, columns]
        if tensor.op == MUL_MAT:
            sums[0] += x.reshape(-1, columns).sum(axis=0)
            counts[0] += x.size // columns
            return
        chosen = _values(tensor.src[2].contents, np.int32)[0, 0]  # [tokens, used]
        for token, experts_of_token in enumerate(chosen):
            for position, expert in enumerate(experts_of_token):
                sums[expert] += x[0, token, position % x.shape[2]]
                counts[expert] += 1


def _values(tensor: Tensor, dtype: Any) -> Array:
    """[ne3, ne2, ne1, ne0]."""
    assert tensor.nb[0] == 4
    size = sum((n - 1) * b for n, b in zip(tensor.ne, tensor.nb, strict=True)) + 4
    raw = np.frombuffer((ctypes.c_char * size).from_address(tensor.data), dtype=dtype)
    shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
    return np.lib.stride_tricks.as_strided(raw, shape, strides).copy()


def main(path: str, out: str, rows: list[list[int]]) -> None:
    import llama_cpp

    listener = Listener()
    callback = llama_cpp.ggml_backend_sched_eval_callback(listener.hear)
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    for row in rows:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = F32
        params.flash_attn_type = 0
        params.cb_eval = callback
        context = llama_cpp.llama_init_from_model(model, params)
        batch = llama_cpp.llama_batch_init(len(row), 0, 1)
        batch.n_tokens = len(row)
        for at, token in enumerate(row):
            batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = token, at, 1, 1
            batch.seq_id[at][0] = 0
        assert llama_cpp.llama_decode(context, batch) == 0
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
    parts = {f"sums/{name}": value for name, value in listener.sums.items()}
    np.savez(out, **parts, **{f"counts/{name}": value for name, value in listener.counts.items()})  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
