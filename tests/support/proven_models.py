"""Models with what the proof measured of them and their healthy GGUF files, each made once a process.

from support.proven_models import proven
one = proven("gemma2")
verdict = prove(one.gguf("q4_k_m"), one.baseline)
"""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_args

from support import exported
from support.tiny_embedders import EMBEDDERS, build_embedder, real_minilm
from support.tiny_models import FamilyName, build_tiny_model
from support.tuned_demo import tuned_demo

from whet.engine.demo import MODEL_DIR
from whet.engine.export.gguf.convert import convert
from whet.engine.export.gguf.quantize import quantize
from whet.engine.export.gguf.types import find_type
from whet.engine.export.held_out import held_out_rows
from whet.engine.export.smoke import Baseline, prove, reference_of
from whet.engine.recipe_files import load_recipe

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
SHARED_HEAD = ("gemma", "gemma2")
EMBEDDING = "embedding-"
"""Begins the names of embedding models, which go on with a key of EMBEDDERS."""
DECODERS: tuple[str, ...] = get_args(FamilyName)
ENCODERS: tuple[str, ...] = tuple(f"{EMBEDDING}{name}" for name in EMBEDDERS)


@dataclass
class Proven:
    """A model folder, its reference, and its files by type."""

    name: str
    folder: Path
    baseline: Baseline
    files: dict[str, Path] = field(default_factory=dict)

    def gguf(self, kind: str) -> Path:
        """The healthy file of this type; the f16 file is proven first, as others are held against it."""
        if kind not in self.files:
            out = exported.folder() / f"{self.name}-{kind}.gguf"
            direct: Any = kind
            if find_type(kind).direct:
                self.files[kind] = convert(self.folder, out, direct)
                prove(self.files[kind], self.baseline, keep=False)
            else:
                self.files[kind] = quantize(self.gguf("f16"), out, kind).path
        return self.files[kind]


@cache
def proven(name: str) -> Proven:
    """``learnt``: a small Llama that knows a few conversations by heart; ``tuned``: base and adapter, merged;
    ``llama3``: with Llama 3's rope scaling; ``demo``: whet's own, tuned; a family of tiny models with random
    weights; or an embedding model, of which ``embedding-minilm`` is a real one.
    """
    folder = _folder(name)
    stack = ExitStack()
    atexit.register(stack.close)
    one = Proven(name, folder, stack.enter_context(reference_of(folder, _held_out(name))))
    one.gguf("f16")
    return one


def _held_out(name: str) -> list[dict[str, Any]] | None:
    if name == "learnt":
        return exported.learnt_rows()
    return held_out_rows(load_recipe("demo"), MODEL_DIR) if name == "demo" else None


@cache
def _folder(name: str) -> Path:
    place = exported.folder() / f"model-{name}"
    if name == "demo":
        return tuned_demo()
    if name == "learnt":
        return exported.learnt_model()
    if name == "tuned":
        return exported.merged(place)
    if name == "llama3":
        return build_tiny_model(place, "llama", wide=True, rope_parameters=LLAMA3)
    if name == f"{EMBEDDING}minilm":
        return real_minilm()
    if name.startswith(EMBEDDING):
        return build_embedder(place, name.removeprefix(EMBEDDING))
    family: Any = name
    return build_tiny_model(place, family, wide=True, tied=name in SHARED_HEAD)
