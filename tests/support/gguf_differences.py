"""Two GGUF files of one model compared: tensors, shapes, types, values, keys; and the differences that are
meant."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader

SCORES = "tokenizer.ggml.scores"
UNUSED = 5


@dataclass(frozen=True)
class Difference:
    """``ours`` and ``theirs`` are None where a file has no such thing."""

    name: str
    ours: Any
    theirs: Any


@dataclass(frozen=True)
class Meant:
    """A difference from llama.cpp's converter that is meant.

    Args:
        names: patterns (fnmatch) of keys and tensors.
        side: which file has it: ours, theirs, or both with other values; any where that differs.
        cases: patterns of the cases in which it may appear.
    """

    names: tuple[str, ...]
    side: str
    reason: str
    cases: tuple[str, ...] = ("*",)

    def names_it(self, name: str) -> bool:
        return any(name == pattern or fnmatch(name, pattern) for pattern in self.names)

    def covers(self, case: str, found: Difference) -> bool:
        sides = {(True, False): "ours", (False, True): "theirs"}
        side = sides.get((found.ours is not None, found.theirs is not None), "both")
        return (
            self.side in (side, "any")
            and self.names_it(found.name)
            and any(fnmatch(case, pattern) for pattern in self.cases)
        )


MEANT = (
    Meant(
        ("*.attention.key_length", "*.attention.value_length", "*.rope.dimension_count", "*.rope.freq_base",
         "*.vocab_size"),
        "ours",
        "written always; upstream leaves out what llama.cpp works out or assumes by itself",
    ),
    Meant(("general.size_label",), "theirs", "a label for people; upstream counts the weights for it"),
    Meant(("tokenizer.ggml.pre",), "both", "found by trial; upstream by the hash of a known tokenizer"),
    Meant(("tokenizer.ggml.eot_token_id",), "ours", "the end of a turn, read from the chat template"),
    Meant(
        (f"{SCORES} (unused tokens)",),
        "both",
        "of embedding rows without a token; nothing reads them",
        ("*-sentencepiece",),
    ),
    Meant(
        ("tokenizer.ggml.add_space_prefix",),
        "ours",
        "written always; upstream for Llama only where tokenizer_config.json has it",
        ("llama-sentencepiece",),
    ),
    Meant(
        ("tokenizer.ggml.eot_token_id",),
        "theirs",
        "upstream gives Gemma 1 a fixed one; here the template says what ends a turn",
        ("gemma-sentencepiece",),
    ),
    Meant(
        ("rope_factors_*.weight", "*.rope.scaling.attn_factor", "*.rope.scaling.original_context_length"),
        "ours",
        "upstream writes LongRoPE's factors for phi3 only, and llama.cpp computes them for llama too",
        ("llama-longrope",),
    ),
    Meant(
        ("phi3.rope.scaling.type",),
        "ours",
        "written for every architecture with LongRoPE; upstream leaves it out for phi3",
        ("phi3-short", "phi4-mini"),
    ),
    Meant(
        ("*.rope.scaling.*",),
        "ours",
        "upstream writes no rope scaling for Gemma 1 and 2, whose llama.cpp applies it",
        ("gemma-*", "gemma2-*"),
    ),
    Meant(
        ("*.rope.scaling.attn_factor",),
        "ours",
        "upstream drops mscale, and writes attention_factor under a key that llama.cpp does not read here",
        ("*-yarn-*",),
    ),
    Meant(("*.rope.scaling.yarn_attn_factor",), "theirs", "see attn_factor", ("*-yarn-*",)),
    Meant(
        ("*.attention.sliding_window_pattern",),
        "ours",
        "written where the layers with a window are not the family's usual ones, which upstream assumes",
        ("*-other-windows",),
    ),
    Meant(
        ("tokenizer.*", "general.tags"),
        "any",
        "encoders' vocabularies are compared by ids, in the tests and in every proof",
        ("embedder-*",),
    ),
    Meant(
        ("modern-bert.*",),
        "any",
        "upstream writes ModernBERT's epsilon as that of an RMS norm, its pooling as a classifier's, its "
        "windows as a period",
        ("embedder-modernbert",),
    ),
    Meant(
        ("gemma-embedding.attention.causal", "gemma-embedding.attention.sliding_window_pattern",
         "gemma-embedding.dense_*", "dense_*.weight"),
        "ours",
        "upstream leaves out what is usual, and the dense layers unless it is asked for them",
        ("embedder-embeddinggemma",),
    ),
    Meant(
        ("*.context_length",),
        "both",
        "llama.cpp has no window for this architecture, so the context ends with the window",
        ("*-window",),
    ),
)  # fmt: skip

REFUSED_UPSTREAM = {
    "granite-llama3": "its table of Granite's tensors lacks rope_freqs, which llama.cpp reads",
    "embedder-mistral": "it does not know a Mistral without a head",
}
"""Case -> why only whet converts it."""

EVERYWHERE = tuple(meant for meant in MEANT if meant.cases == ("*",))


def differences(ours: Path, theirs: Path) -> list[Difference]:
    """Keys and tensors that are not the same in both."""
    one, other = GGUFReader(ours), GGUFReader(theirs)
    found = _keys(one, other)
    tensors = {tensor.name: tensor for tensor in one.tensors}
    others = {tensor.name: tensor for tensor in other.tensors}
    for name in sorted(tensors.keys() | others.keys()):
        left, right = tensors.get(name), others.get(name)
        if left is None or right is None or not _same(left, right):
            found.append(Difference(name, left and _words(left), right and _words(right)))
    return found


def unmeant(case: str, found: list[Difference]) -> list[Difference]:
    return [one for one in found if not any(meant.covers(case, one) for meant in MEANT)]


def _keys(one: GGUFReader, other: GGUFReader) -> list[Difference]:
    left, right = ({name: f.contents() for name, f in file.fields.items()} for file in (one, other))
    return [
        Difference(_scores_of(left, right) if name == SCORES else name, left.get(name), right.get(name))
        for name in sorted(left.keys() | right.keys())
        if left.get(name) != right.get(name) and name not in ("GGUF.kv_count", "GGUF.tensor_count")
    ]


def _scores_of(left: dict[str, Any], right: dict[str, Any]) -> str:
    """What is called different: all scores, or no more than those of tokens that no text becomes."""
    used = [kind != UNUSED for kind in left["tokenizer.ggml.token_type"]]
    same = [list(compress(side.get(SCORES) or (), used)) for side in (left, right)]
    return f"{SCORES} (unused tokens)" if same[0] == same[1] else SCORES


def _same(left: Any, right: Any) -> bool:
    if left.tensor_type != right.tensor_type or list(left.shape) != list(right.shape):
        return False
    return bool(np.array_equal(left.data, right.data))


def _words(tensor: Any) -> str:
    return f"{tensor.tensor_type.name} {[int(size) for size in tensor.shape]}"
