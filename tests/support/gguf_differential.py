"""Every family's GGUF beside the one that llama.cpp's own converter writes; the table of
docs/gguf-differential.md.

    WHET_LLAMA_SOURCES=DIR python -P tests/support/gguf_differential.py

DIR holds the unpacked sources of llama-cpp-python.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.gguf_differences import (
    EVERYWHERE,
    MEANT,
    REFUSED_UPSTREAM,
    Difference,
    differences,
    unmeant,
)
from support.gguf_variants import FAMILIES, SHARED_HEAD
from support.kind_tokenizers import BYTE_FALLBACK, save, sentencepiece_bpe, sentencepiece_bytes
from support.tiny_embedders import EMBEDDERS, build_embedder
from support.tiny_models import FamilyName, build_tiny_model
from support.upstream_converter import upstream

from whet.engine.export.gguf.convert import convert

VARIABLE = "WHET_LLAMA_SOURCES"
TABLE = Path(__file__).parents[2] / "docs" / "gguf-differential.md"

SENTENCEPIECE = {
    "llama-sentencepiece": "every",
    "gemma-sentencepiece": "never",
    "gemma3-sentencepiece": "never",
}
"""Case -> what the tokenizer does with spaces."""

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{{ eos_token }}{% endfor %}"
)

CASES: dict[str, tuple[FamilyName, dict[str, Any]]] = {
    **FAMILIES,
    "llama-sentencepiece": ("llama", {}),
    "gemma-sentencepiece": ("gemma", {}),
    "gemma3-sentencepiece": ("gemma3_text", {"tied": True}),
}

EMBEDDING = tuple(f"embedder-{name}" for name in EMBEDDERS)

Outcomes = dict[str, list[Difference] | str]
"""Case -> all differences, or why upstream wrote no file."""

PAGE = """# Against llama.cpp's own converter

Written by `make gguf-differential`: tiny random models of every family, decoders and encoders, are converted
to f16 by whet and by `convert_hf_to_gguf.py` of llama-cpp-python's sources, and compared tensor by tensor and
key by key. Most decoders have byte-level tokenizers, some a SentencePiece model.

## Differences that are meant

{meant}

## Cases

"Same" is: the same tensors, names, shapes, types, values and keys, but for the first {everywhere} lines
above, which may appear in every file.

{rows}
"""


def compare_all(sources: Path, folder: Path) -> Outcomes:
    """Build, convert twice and compare every case. ``sources`` are llama-cpp-python's."""
    jobs = {}
    for case in (*CASES, *EMBEDDING):
        model = build(folder / case / "model", case)
        convert(model, folder / case / "ours.gguf", "f16", name="m")
        jobs[case] = (model, folder / case / "theirs.gguf")
    answers = upstream(sources / "vendor" / "llama.cpp", list(jobs.values()))
    return {
        case: error or differences(folder / case / "ours.gguf", theirs)
        for (case, (_, theirs)), error in zip(jobs.items(), answers, strict=True)
    }


def build(path: Path, case: str) -> Path:
    """A family's model, with the tokenizer of the tiny models or with a SentencePiece one; or an embedder."""
    if case in EMBEDDING:
        return build_embedder(path, case.removeprefix("embedder-"))
    family, changes = CASES[case]
    spaces = SENTENCEPIECE.get(case)
    rows = {"vocab_size": 3600, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} if spaces else {}
    model = build_tiny_model(path, family, **{"tied": family in SHARED_HEAD, **changes, **rows})
    if spaces:
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
        around = {"add_bos_token": True, "add_eos_token": False}
        save(model, sentencepiece_bpe(spaces), **special, **around, chat_template=TEMPLATE)
        (model / "generation_config.json").unlink()
        (model / "tokenizer.model").write_bytes(sentencepiece_bytes("bpe", **BYTE_FALLBACK))
    return model


def table(outcomes: Outcomes) -> str:
    """The page for docs/."""
    meant = ["| keys and tensors | in | why |", "|---|---|---|"]
    for one in MEANT:
        names = ", ".join(f"`{name}`" for name in one.names)
        meant.append(f"| {names} | {one.side} | {one.reason} |")
    rows = ["| case | result |", "|---|---|"]
    for case, found in outcomes.items():
        rows.append(f"| {case} | {_result(case, found)} |")
    return PAGE.format(meant="\n".join(meant), rows="\n".join(rows), everywhere=len(EVERYWHERE))


def as_meant(case: str, found: list[Difference] | str) -> bool:
    return case in REFUSED_UPSTREAM if isinstance(found, str) else not unmeant(case, found)


def _result(case: str, found: list[Difference] | str) -> str:
    if isinstance(found, str):
        return f"upstream writes none: {REFUSED_UPSTREAM.get(case, found)}"
    if faults := unmeant(case, found):
        return f"**not meant:** {', '.join(f'`{one.name}`' for one in faults)}"
    own = [f"`{one.name}`" for one in found if not any(meant.covers(case, one) for meant in EVERYWHERE)]
    if case in EMBEDDING:
        own = ["the vocabulary", *(name for name in own if "`tokenizer." not in name)]
    return f"same but for {', '.join(own)}" if own else "same"


def main() -> int:
    with tempfile.TemporaryDirectory() as made:
        outcomes = compare_all(Path(os.environ[VARIABLE]), Path(made))
    TABLE.write_text(table(outcomes), encoding="utf-8")
    faults = [case for case, found in outcomes.items() if not as_meant(case, found)]
    print(f"{len(outcomes) - len(faults)} of {len(outcomes)} cases are as meant. {' '.join(faults)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
