"""CSM as runs: frames of several codes, with transformers' own loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from support.live_runs import attempt
from support.tiny_csm import BOOKS, RATE, build_tiny_csm
from support.tiny_runs import create_run, events_of, next_attempt
from transformers import AutoTokenizer, CsmForConditionalGeneration

from whet.engine.export.of_run import export_run
from whet.engine.methods.tts.frames_job import FramesTraining
from whet.engine.methods.tts.frames_trainer import FrameCollator, embedded
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.runs.events import EvalEvent, StepEvent
from whet.engine.runs.store import RunDir

WORDS = ("yes", "no", "hello", "please")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def csm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_csm(tmp_path_factory.mktemp("csm") / "model")


def sound(word: str) -> list[list[int]]:
    """Three frames that follow from the word; codes[codebook][frame]."""
    codes: list[list[int]] = np.random.default_rng(list(word.encode())).integers(0, 16, (BOOKS, 3)).tolist()
    return codes


def recipe(model: Path, folder: Path, **sections: dict[str, Any]) -> Recipe:
    rows = folder / "rows.jsonl"
    lines = [json.dumps({"text": word, "codes": sound(word), "speaker": 1}) for word in WORDS * 2]
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    values: dict[str, dict[str, Any]] = {
        "model": {"name": str(model), "max_length": 64},
        "data": {"train": str(rows), "eval": str(rows)},
        "method": {"kind": "tts", "layout": "csm"},
        "adapter": {"rank": 16, "alpha": 32},
        "eval": {"every": 100, "batch_size": 4},
        "training": {
            "max_steps": 50, "batch_size": 4, "gradient_accumulation": 1, "learning_rate": 1e-2,
            "optimizer": "adamw", "save_every": 100, "warmup": 0, "threads": 1, "scheduler": "constant",
        },
    }  # fmt: skip
    return Recipe.model_validate(
        {name: values.get(name, {}) | sections.get(name, {}) for name in values | sections}
    )


def steps(run: RunDir) -> dict[int, float]:
    return {event.step: event.loss for event in events_of(run) if isinstance(event, StepEvent)}


def frames_loss(model: Any, rows: list[dict[str, Any]]) -> float:
    """transformers' own, of our rows."""
    batch = FrameCollator(BOOKS)(rows)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with torch.no_grad():
        vectors = embedded(base, batch["input_ids"], batch["labels"])
        out = model.eval()(
            inputs_embeds=vectors, attention_mask=batch["attention_mask"], labels=batch["labels"]
        )
    return float(out.loss)


def test_frames_are_what_transformers_makes_of_the_same_sound(csm: Path) -> None:
    model: Any = CsmForConditionalGeneration.from_pretrained(csm).eval()
    config, text = model.config, [3, 4, 5]
    waves = torch.randn(1, 1, RATE // 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        codes = model.codec_model.encode(waves).audio_codes[0]
    count = codes.shape[1]
    assert len(codes.unique()) > 4
    ids = torch.tensor([text + [config.audio_token_id] * count + [config.audio_eos_token_id]])
    labels = torch.where(ids >= min(config.audio_token_id, config.audio_eos_token_id), ids, -100)
    with torch.no_grad():
        wanted = model(
            input_ids=ids,
            input_values=waves,
            input_values_cutoffs=torch.tensor([[waves.shape[-1]]]),
            attention_mask=torch.ones_like(ids),
            labels=labels,
        ).loss
    frames = [*codes.T.flatten().tolist(), *[config.codebook_eos_token_id] * BOOKS]
    assert frames_loss(model, [{"input_ids": text, "frames": frames}]) == pytest.approx(
        float(wanted), rel=1e-5
    )


def test_a_row_is_its_text_its_frames_and_the_frame_that_ends_them(csm: Path, tmp_path: Path) -> None:
    plan = make_plan(recipe(csm, tmp_path))
    row = Dataset.from_file(str(plan.data.train))[0]
    end = CsmForConditionalGeneration.from_pretrained(csm).config.codebook_eos_token_id
    frames = [code for frame in zip(*sound(WORDS[0]), strict=True) for code in frame]
    assert row["frames"] == [*frames, *[end] * BOOKS]
    tokenizer = AutoTokenizer.from_pretrained(csm)
    said = f"<|begin_of_text|>[1]{WORDS[0]}<|end_of_text|>"
    assert row["input_ids"] == tokenizer.encode(said, add_special_tokens=False)


def test_it_learns_and_leaves_as_plain_peft_and_proven_merged_weights(csm: Path, tmp_path: Path) -> None:
    training = {"gradient_checkpointing": "on"}
    run = create_run(recipe(csm, tmp_path, export={"merged": True}, training=training))
    assert attempt(run, method=FramesTraining) == "finished"
    evaluations = [event.loss for event in events_of(run) if isinstance(event, EvalEvent)]
    assert evaluations[-1] < 0.1 * evaluations[0]
    rows = FramesTraining(next_attempt(run)).trainer.eval_dataset.to_list()[:4]
    base = CsmForConditionalGeneration.from_pretrained(csm)
    trained = frames_loss(PeftModel.from_pretrained(base, str(run.export / "adapter")), rows)
    assert trained == pytest.approx(evaluations[-1], rel=1e-4)
    result = export_run(next_attempt(run))
    assert result.status == "pass", result.verdicts
    merged = CsmForConditionalGeneration.from_pretrained(run.export / "merged", dtype=torch.float32)
    assert frames_loss(merged, rows) == pytest.approx(trained, abs=0.05)
    names = json.loads((run.export / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert not any("codec" in name for name in names)


def test_a_stopped_run_of_all_weights_goes_on_where_it_was(csm: Path, tmp_path: Path) -> None:
    wanted = recipe(
        csm, tmp_path, adapter={"kind": "none"},
        training={"max_steps": 5, "save_every": 2, "batch_size": 2, "gradient_accumulation": 2},
    )  # fmt: skip
    first = create_run(wanted)
    assert attempt(first, method=FramesTraining) == "finished"
    run = create_run(wanted)
    assert attempt(run, stop_after=3, method=FramesTraining) == "stopped"
    assert attempt(run, method=FramesTraining) == "finished"
    assert steps(run) == steps(first) and len(steps(run)) == 5
    together = recipe(csm, tmp_path, adapter={"kind": "none"}, training={"max_steps": 1})
    one = create_run(together)
    assert attempt(one, method=FramesTraining) == "finished"
    assert steps(one)[1] == pytest.approx(steps(first)[1], rel=1e-5)  # however a step is divided


def test_the_plan_of_a_healthy_run_is_free_to_start(csm: Path, tmp_path: Path) -> None:
    rows = tmp_path / "many.jsonl"
    lines = [json.dumps({"text": f"word {number}", "codes": sound(str(number))}) for number in range(120)]
    rows.write_text("\n".join(lines), encoding="utf-8")
    plan = make_plan(recipe(csm, tmp_path, data={"train": str(rows), "eval": None}))
    assert [finding.id for finding in plan.findings if finding.severity != "note"] == []
    assert plan.model.family == "csm" and plan.model.codebooks == (BOOKS, 20)


@pytest.mark.parametrize("setting", [{"train_embeddings": True}, {"modules_to_save": ["lm_head"]}])
def test_embeddings_that_two_decoders_share_train_with_all_weights_or_not(
    csm: Path, tmp_path: Path, setting: dict[str, Any]
) -> None:
    run = create_run(recipe(csm, tmp_path, adapter=setting))
    assert attempt(run, method=FramesTraining) == "adapter.whole_ends"


def test_gguf_and_wrong_codebooks_are_refused_with_the_reason(csm: Path, tmp_path: Path) -> None:
    plan = make_plan(recipe(csm, tmp_path, export={"gguf": ["q8_0"]}))
    assert any("several codebooks a frame" in str(finding.model_dump()) for finding in plan.blocked())
    rows = tmp_path / "bad.jsonl"
    bad = [[[1, 2]], [[1], [1], [1], [1, 2]], [[1], [1], [1], [99]], [1, 2]]
    good = [{"text": "yes", "codes": sound("yes")}] * 80
    lines = [json.dumps(row) for row in [*good, *({"text": "no", "codes": codes} for codes in bad)]]
    rows.write_text("\n".join(lines), encoding="utf-8")
    report = make_plan(recipe(csm, tmp_path, data={"train": str(rows), "eval": None})).data.report
    assert [one.reason for one in report.bad] == [
        "there are 1 codebooks, the model writes 4: codes[codebook][frame]",
        "codebooks are not equally long: 1, 1, 1, 2",
        "a code is 99, the codebooks have 20",
        "there are 1 codebooks, the model writes 4: codes[codebook][frame]",
    ]
