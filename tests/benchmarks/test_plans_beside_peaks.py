"""Each method's planned peak beside what an H200's allocator held: the benchmark's cases, none trained."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.plan_inputs import gpu, machine

from whet.engine.plan import make_plan

FOLDER = Path(__file__).parents[2] / "benchmarks"
H200 = machine(gpu(139.8))
SCRIPTS = ("cases", "models", "timing", "whet_side", "methods")
BELOW, ABOVE = 0.03, 0.10
"""A plan is an upper bound, and near the truth."""
METHODS = (
    "sft", "embedding", "classification", "token_classification", "reranker", "preference", "reward",
)  # fmt: skip
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 0}
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    """The benchmark's modules; they are scripts beside one another, no package."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in (FOLDER, FOLDER / "training", FOLDER / "by_method"):
            patch.syspath_prepend(str(folder))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in SCRIPTS})
        for name in SCRIPTS:
            del sys.modules[name]


def measured(case: str) -> int:
    """Bytes of the newest measurement on a GPU; of one day, some methods were measured after all of them."""
    pages = sorted((FOLDER / "results").glob("methods-gpu-*.json"), key=lambda path: (path.stem[-10:], path))
    peaks = []
    for page in pages:
        found = json.loads(page.read_text(encoding="utf-8"))
        side = found["methods"].get(case, {}).get("whet", {})
        if side.get("peak") and found["machine"] == "NVIDIA H200":
            peaks.append(side["peak"])
    return int(peaks[-1])


def shape_folder(scripts: Any, model: str, folder: Path) -> Path:
    """The case's model without weights."""
    folder.mkdir()
    if model in scripts.models.ENCODERS:
        config = {**scripts.models.ENCODERS[model], **NO_DROPOUT, "dtype": "float32"}
        scripts.models._write_word_tokenizer(folder)
    else:
        config = {**scripts.models.SHAPES[model], **ENDS, "dtype": "bfloat16"}
        scripts.models._write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("case", METHODS)
def test_planned_peaks_are_just_above_measured_ones(case: str, scripts: Any, tmp_path: Path) -> None:
    about = scripts.cases.CASES[case]
    model = scripts.methods.MODELS["cuda"][about.family]
    steps, warm = scripts.methods.STEPS["cuda"]
    batch, words, rows = about.batch[1], about.words[1], tmp_path / "rows.jsonl"
    made = about.rows(max(batch * (steps + 1), 100), words)
    rows.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    job = scripts.cases.Job(
        side="whet", case=case, model=model, folder=str(shape_folder(scripts, model, tmp_path / model)),
        rows=str(rows), device="cuda", batch=batch, length=scripts.methods.LENGTH["cuda"],
        steps=steps, warm=warm, threads=1,
    )  # fmt: skip
    memory = make_plan(scripts.whet_side.recipe_of(job), machine=H200).memory
    peak = measured(case)
    assert (1 - BELOW) * peak <= memory.allocated <= (1 + ABOVE) * peak
    assert memory.allocated < memory.peak < memory.needed
