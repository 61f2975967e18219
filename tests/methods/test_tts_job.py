"""Speaking language models as runs: they learn which codes a text sounds like, in each family's own order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support.live_runs import attempt
from support.tiny_models import build_tiny_model
from support.tiny_runs import create_run, events_of, next_attempt
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from whet.engine.errors import WhetError
from whet.engine.export.of_run import export_run
from whet.engine.methods.tts.job import SpeakingTraining
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.runs.events import EvalEvent, StepEvent
from whet.engine.runs.store import RunDir

WORDS = ("yes", "no", "hello", "please")
SIZE = 8
START = 410
MARKS = {
    "text_end": 401, "human_start": 402, "human_end": 403, "ai_start": 404, "ai_end": 405,
    "speech_start": 406, "speech_end": 407, "codes_start": START, "codebook_size": SIZE,
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Room for Orpheus' marks and codes behind the vocabulary, as in the published model."""
    path = build_tiny_model(tmp_path_factory.mktemp("model"), vocab_size=START + 7 * SIZE)
    weights = load_file(path / "model.safetensors")
    weights["lm_head.weight"] *= (
        20  # an adapter moves hidden states: of 0.02 no logit could be far from another
    )
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def sound(word: str) -> list[list[int]]:
    """Two frames of SNAC's codebooks that follow from the word."""
    draw = np.random.default_rng(list(word.encode()))
    return [draw.integers(0, SIZE, count * 2).tolist() for count in (1, 2, 4)]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def spoken_rows(path: Path) -> Path:
    return write_rows(path, [{"text": word, "codes": sound(word)} for word in WORDS * 3])


def recipe(model: Path, rows: Path, **sections: dict[str, Any]) -> Recipe:
    values: dict[str, dict[str, Any]] = {
        "model": {"name": str(model), "max_length": 128},
        "data": {"train": str(rows), "eval": str(rows)},
        "method": {"kind": "tts", "orpheus": MARKS},
        "adapter": {"rank": 16, "alpha": 32},
        "eval": {"every": 100, "batch_size": 4},
        "training": {
            "max_steps": 60, "batch_size": 4, "gradient_accumulation": 2, "learning_rate": 1e-2,
            "optimizer": "adamw", "save_every": 100, "warmup": 0, "threads": 1, "scheduler": "cosine",
        },
    }  # fmt: skip
    return Recipe.model_validate(
        {name: values.get(name, {}) | sections.get(name, {}) for name in values | sections}
    )


def steps(run: RunDir) -> dict[int, float]:
    return {event.step: event.loss for event in events_of(run) if isinstance(event, StepEvent)}


def stored(wanted: Recipe) -> list[dict[str, Any]]:
    from datasets import Dataset

    return Dataset.from_file(str(make_plan(wanted).data.train)).to_list()


def test_orpheus_rows_are_marks_text_and_interleaved_codes(llama: Path, tmp_path: Path) -> None:
    levels = [[0, 1], [2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7]]
    frames = [[0, 2, 0, 1, 3, 2, 3], [1, 4, 4, 5, 5, 6, 7]]
    flat = [place * SIZE + code for frame in frames for place, code in enumerate(frame)]
    tokens = [START + code for code in flat]
    rows: list[dict[str, Any]] = [
        {"text": "yes", "codes": levels},
        {"text": "yes", "codes": flat, "source": "tara"},
        {"text": "yes", "codes": tokens},
        # Held sound: frames that begin alike, whatever follows.
        {"text": "yes", "codes": tokens[:7] * 2 + [tokens[0], *tokens[8:]] + tokens[7:]},
    ]
    found = stored(recipe(llama, write_rows(tmp_path / "rows.jsonl", rows)))
    tokenizer = AutoTokenizer.from_pretrained(llama)
    for number, row in enumerate(found):
        said = "tara: yes" if number == 1 else "yes"
        before = [402, *tokenizer.encode(said), 401, 403, 404, 406]
        assert row["input_ids"] == [*before, *tokens, 407, 405]
        assert row["labels"] == [-100] * len(before) + [*tokens, 407, 405]
    whole = stored(
        recipe(llama, tmp_path / "rows.jsonl", method={"kind": "tts", "orpheus": MARKS, "learn": "all"})
    )
    assert whole[0]["labels"] == whole[0]["input_ids"]


def test_it_learns_to_speak_and_says_the_same_with_plain_peft(llama: Path, tmp_path: Path) -> None:
    rows = spoken_rows(tmp_path / "rows.jsonl")
    run = create_run(recipe(llama, rows, export={"gguf": ["f16"], "smoke_test": False}))
    assert attempt(run, method=SpeakingTraining) == "finished"
    evaluations = [event.loss for event in events_of(run) if isinstance(event, EvalEvent)]
    assert evaluations[-1] < 0.05 * evaluations[0]
    folder = run.export / "adapter"
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), str(folder)).eval()
    for row in stored(recipe(llama, rows))[:3]:
        start = row["labels"].index(next(label for label in row["labels"] if label != -100))
        prompt = torch.tensor([row["input_ids"][:start]])
        out = plain.generate(input_ids=prompt, max_new_tokens=len(row["labels"]) - start, do_sample=False)
        assert out[0].tolist() == row["input_ids"]
    file = export_run(next_attempt(run)).paths["f16"]  # as of any language model
    tokens = gguf.GGUFReader(str(file)).fields["tokenizer.ggml.tokens"]
    assert len(tokens.data) == START + 7 * SIZE


def test_a_stopped_run_goes_on_where_it_was(llama: Path, tmp_path: Path) -> None:
    wanted = recipe(
        llama, spoken_rows(tmp_path / "rows.jsonl"), adapter={"dropout": 0.1},
        training={"max_steps": 6, "save_every": 2},
    )  # fmt: skip
    first = create_run(wanted)
    assert attempt(first, method=SpeakingTraining) == "finished"
    run = create_run(wanted)
    assert attempt(run, stop_after=3, method=SpeakingTraining) == "stopped"
    assert attempt(run, method=SpeakingTraining) == "finished"
    assert steps(run) == steps(first) and len(steps(run)) == 6


def test_spark_rows_are_tokens_of_the_vocabulary(tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "model", "qwen2", vocab_size=470)
    file = str(model / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    marks = ["<|task_tts|>", "<|im_end|>"]
    marks += [
        f"<|{edge}_{part}|>"
        for edge in ("start", "end")
        for part in ("content", "global_token", "semantic_token")
    ]
    codes = [f"<|bicodec_{part}_{code}|>" for part in ("global", "semantic") for code in range(8)]
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks + codes])
    tokenizer.save(file)
    row = {"text": "say {yes}", "global_codes": [3, 1], "codes": [7, 0, 7]}
    (found,) = stored(
        recipe(
            model,
            write_rows(tmp_path / "rows.jsonl", [row] * 1),
            data={"eval": None},
            method={"kind": "tts", "orpheus": {}},
        )
    )
    before = (
        "<|task_tts|><|start_content|>say {yes}<|end_content|><|start_global_token|><|bicodec_global_3|>"
        "<|bicodec_global_1|><|end_global_token|><|start_semantic_token|>"
    )
    speech = (
        "<|bicodec_semantic_7|><|bicodec_semantic_0|><|bicodec_semantic_7|><|end_semantic_token|><|im_end|>"
    )
    ids = [tokenizer.encode(part, add_special_tokens=False).ids for part in (before, speech)]
    assert found["input_ids"] == ids[0] + ids[1]
    assert found["labels"] == [-100] * len(ids[0]) + ids[1]


def test_bad_rows_and_models_of_another_family_are_refused(llama: Path, tmp_path: Path) -> None:
    bad: list[tuple[Any, str]] = [
        ([[0], [1, 2], [1, 2, 3]], "1, 2, 3 long, expected n, 2n and 4n"),
        ([[0], [1, 2], [1, 2, 3, SIZE]], f"a code is {SIZE}, the codebooks have {SIZE}"),
        ([0, 1, 2], "3 codes are no whole frames of 7"),
        ([0] * 7, f"code 1 is 0: at place 1 of a frame it lies from {SIZE} to {2 * SIZE - 1}"),
        ([], "expected a list of codes"),
        ([0, -1], "holds -1, expected whole numbers"),
        ([0.5], "holds 0.5"),
        ("codes", "is 'codes', expected a list"),
    ]
    good: list[dict[str, Any]] = [{"text": "yes", "codes": sound("yes")}] * 80
    rows = write_rows(tmp_path / "rows.jsonl", [*good, *({"text": "no", "codes": codes} for codes, _ in bad)])
    report = make_plan(recipe(llama, rows, data={"eval": None})).data.report
    assert report.train.rows == 80 and report.bad_rows == len(bad)
    for found, (_, reason), line in zip(report.bad, bad, range(81, 89), strict=True):
        assert found.line == line and reason in found.reason, found.reason
    for method, code in (
        ({"orpheus": {}}, "tts.vocabulary"),
        ({"orpheus": {}, "layout": "spark"}, "tts.vocabulary"),
        ({"orpheus": {}, "layout": "csm"}, "tts.model"),
    ):
        with pytest.raises(WhetError) as caught:
            make_plan(recipe(llama, rows, method={"kind": "tts", **method}))
        assert caught.value.code == code
