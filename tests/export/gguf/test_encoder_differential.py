"""Our files of embedding models against those of llama.cpp's own converter: the same tensors, values and keys
but for the differences that are meant. As test_gguf_differential.py, run by `make gguf-differential`.

Vocabularies are compared by ids (test_gguf_encoder_tokens.py): upstream's are those of its tokenizer classes.
"""

from __future__ import annotations

import os
from fnmatch import fnmatch
from pathlib import Path

import pytest
from support.gguf_differences import differences
from support.gguf_differential import VARIABLE
from support.tiny_embedders import EMBEDDERS, build_embedder, real_minilm
from support.upstream_converter import upstream

from whet.engine.export.gguf.convert import convert

pytestmark = pytest.mark.skipif(
    VARIABLE not in os.environ,
    reason=f"{VARIABLE} does not name the unpacked sources of llama-cpp-python (make gguf-differential)",
)

CASES = ("minilm", *(name for name in EMBEDDERS if name != "xlm-r"))  # upstream reads that one by protobuf
MEANT: dict[str, tuple[str, ...]] = {
    # A label, the model card's metadata, and what is compared by ids.
    "*": ("general.*", "tokenizer.*", "*.vocab_size", "*.rope.dimension_count"),
    # Dense layers only with a flag of upstream's; layers of other kinds than usual not at all; and what
    # llama.cpp knows of the architecture anyway.
    "embeddinggemma": (
        "dense_?.weight",
        "*.dense_?_feat_*",
        "*.sliding_window_pattern",
        "*.attention.causal",
    ),
    # Upstream writes the epsilon of an RMS norm, which llama.cpp does not read here; every layer by name; and
    # of a classifier that the file does not hold.
    "modernbert": (
        "*.layer_norm_epsilon",
        "*.layer_norm_rms_epsilon",
        "*.sliding_window_pattern",
        "*.classifier.pooling_type",
        "*.rope.scaling.type",
    ),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str] | str]:
    """Case -> names of what differs, or why upstream wrote no file."""
    folder = tmp_path_factory.mktemp("encoders")
    jobs = {}
    for case in CASES:
        model = real_minilm() if case == "minilm" else build_embedder(folder / case, case)
        convert(model, folder / f"{case}-ours.gguf", "f16", name="m")
        jobs[case] = (model, folder / f"{case}-theirs.gguf")
    answers = upstream(Path(os.environ[VARIABLE]) / "vendor" / "llama.cpp", list(jobs.values()))
    return {
        case: error or [one.name for one in differences(folder / f"{case}-ours.gguf", theirs)]
        for (case, (_, theirs)), error in zip(jobs.items(), answers, strict=True)
    }


@pytest.mark.parametrize("case", CASES)
def test_same_file_but_for_what_is_meant(found: dict[str, list[str] | str], case: str) -> None:
    names = found[case]
    assert not isinstance(names, str), names
    meant = (*MEANT["*"], *MEANT.get(case, ()))
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in meant)] == []
