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
from support import tiny_vision
from support.healthy_models import write_sparse
from support.plan_inputs import gpu, machine

from whet.engine.plan import make_plan

FOLDER = Path(__file__).parents[2] / "benchmarks"
H200 = machine(gpu(139.8))
SCRIPTS = ("cases", "models", "seeing", "making", "timing", "whet_side", "methods")
BELOW, ABOVE = 0.03, 0.10
"""A plan is an upper bound, and near the truth."""
METHODS = (
    "sft", "embedding", "classification", "token_classification", "reranker", "preference", "reward",
    "speech", "tts", "vision",
)  # fmt: skip
WIDER = {"tts": 0.20}
"""Rows of codes have 313 to 945 tokens, and a step is planned for eight of the longest, 7,616 as they are
packed: shuffled, the fullest of twenty steps has about 6,000."""
NARROW = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
"""What is written first of a model that sees; its own sizes go into config.json alone."""
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 0}
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    """The benchmark's modules; they are scripts beside one another, no package."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in (FOLDER, FOLDER / "training", FOLDER / "by_method"):
            patch.syspath_prepend(str(folder))
        for name in SCRIPTS:  # folders of tests have some of these names too
            patch.delitem(sys.modules, name, raising=False)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in SCRIPTS})


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
    if model in scripts.making.SEEING:
        return seeing_folder(scripts, model, folder)
    if model in scripts.making.HEARING:
        return hearing_folder(scripts, model, folder)
    folder.mkdir()
    if model in scripts.models.ENCODERS:
        config = {**scripts.models.ENCODERS[model], **NO_DROPOUT, "dtype": "float32"}
        scripts.models._write_word_tokenizer(folder)
    else:
        config = {**scripts.models.SHAPES[model], **ENDS, "dtype": "bfloat16"}
        scripts.models._write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def seeing_folder(scripts: Any, model: str, folder: Path) -> Path:
    """Its weights' shapes are in the header of a file without bytes: the encoder is counted by them."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForImageTextToText

    text, tower = scripts.making.SEEING[model]
    tower = scripts.making.TOWER | tower
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny_vision.SEEING, "llava", tiny_vision.SEEING["llava"])  # and back to it
        scripts.seeing.make_seeing(folder, text | NARROW, tower | NARROW)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"] |= text
    config["vision_config"] |= tower
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with init_empty_weights():
        empty = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    shapes = {name: list(one.shape) for name, one in empty.state_dict().items()}
    write_sparse(folder / "model.safetensors", shapes, filled=())
    return folder


def hearing_folder(scripts: Any, model: str, folder: Path) -> Path:
    """Written narrow, with the sizes in config.json and no weights."""
    sizes = scripts.making.HEARING[model]
    scripts.making._hearing(folder, **sizes | {"d_model": 48, "layers": 1, "heads": 2, "ffn": 48})
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["d_model"] = sizes["d_model"]
    for side in ("encoder", "decoder"):
        config |= {f"{side}_layers": sizes["layers"], f"{side}_attention_heads": sizes["heads"]}
        config[f"{side}_ffn_dim"] = sizes["ffn"]
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
    if about.files is not None:
        about.files(made, tmp_path)
    job = scripts.cases.Job(
        side="whet", case=case, model=model, folder=str(shape_folder(scripts, model, tmp_path / model)),
        rows=str(rows), device="cuda", batch=batch, length=scripts.methods.LENGTH["cuda"],
        steps=steps, warm=warm, threads=1,
    )  # fmt: skip
    memory = make_plan(scripts.whet_side.recipe_of(job), machine=H200).memory
    peak = measured(case)
    assert (1 - BELOW) * peak <= memory.allocated <= (1 + WIDER.get(case, ABOVE)) * peak
    assert memory.allocated < memory.peak < memory.needed
