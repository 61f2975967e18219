"""Whisper as runs: it learns what tones are called, goes on where it stopped, and answers without whet."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from support.live_runs import attempt
from support.tiny_runs import create_run, events_of, next_attempt
from support.tiny_whisper import PITCHES, build_tiny_whisper, tone, write_wav, write_words
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from whet.engine.data.speech_store import sounds_digest
from whet.engine.errors import WhetError
from whet.engine.export.of_run import export_run
from whet.engine.methods.speech.job import SpeechTraining
from whet.engine.methods.speech.writing import write_down
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.runs.events import EvalEvent, SampleEvent, StepEvent
from whet.engine.runs.store import RunDir

NEW_WORDS = ("deep", "shrill")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


def recipe(model: Path, rows: Path, **sections: dict[str, Any]) -> Recipe:
    values: dict[str, dict[str, Any]] = {
        "model": {"name": str(model), "max_length": 32},
        "data": {"train": str(rows), "eval_fraction": 0.25},
        "method": {"kind": "speech", "language": "en"},
        "adapter": {"rank": 8, "alpha": 16},
        "eval": {"every": 100, "batch_size": 4},
        "training": {
            "max_steps": 60, "batch_size": 8, "gradient_accumulation": 1, "learning_rate": 1e-2,
            "optimizer": "adamw", "save_every": 100, "warmup": 0, "threads": 1, "scheduler": "constant",
        },
    }  # fmt: skip
    return Recipe.model_validate(
        {name: values.get(name, {}) | sections.get(name, {}) for name in values | sections}
    )


def steps(run: RunDir) -> dict[int, float]:
    return {event.step: event.loss for event in events_of(run) if isinstance(event, StepEvent)}


def evaluations(run: RunDir) -> list[EvalEvent]:
    return [event for event in events_of(run) if isinstance(event, EvalEvent)]


def finished(wanted: Recipe) -> RunDir:
    run = create_run(wanted)
    assert attempt(run, method=SpeechTraining) == "finished"
    return run


@dataclass(frozen=True)
class Learned:
    """A run on all weights of a random model, and where its result lies."""

    base: Path
    rows: Path
    run: RunDir

    @property
    def folder(self) -> Path:
        return self.run.export / "model"


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    root = tmp_path_factory.mktemp("whisper")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHET_HOME", str(root / "home"))
        base, rows = build_tiny_whisper(root / "model"), write_words(root / "rows")
        training = {"learning_rate": 3e-3, "max_steps": 50}
        run = finished(recipe(base, rows, adapter={"kind": "none"}, training=training))
    return Learned(base, rows, run)


def heard(folder: Path, model: Any) -> Any:
    """Logits of the first words of both tones, by transformers alone."""
    processor = WhisperProcessor.from_pretrained(folder)
    features = processor.feature_extractor(
        [tone(pitch) for pitch in PITCHES], sampling_rate=16000, return_tensors="pt"
    )
    start = model.config.decoder_start_token_id
    with torch.no_grad():
        out = model.eval()(
            input_features=features.input_features, decoder_input_ids=torch.tensor([[start, 5, 6]] * 2)
        )
    return out.logits.numpy()


def test_all_weights_learn_what_unheard_tones_are_called(learned: Learned) -> None:
    first, last = evaluations(learned.run)
    assert last.loss < 0.05 * first.loss
    # One word for everything would be wrong half of the time: the sound decides.
    assert first.metrics["wer"] == 1.0 and last.metrics == {"wer": 0.0, "cer": 0.0}
    shown = [event for event in events_of(learned.run) if isinstance(event, SampleEvent)]
    assert [event.step for event in shown] == [0, 0, 0, 50, 50, 50]
    assert all(event.answer == event.prompt for event in shown[3:])


def test_transformers_own_generate_hears_the_same(learned: Learned) -> None:
    model: Any = WhisperForConditionalGeneration.from_pretrained(learned.folder)
    processor = WhisperProcessor.from_pretrained(learned.folder)
    sounds = [tone(pitch * 1.1) for pitch in PITCHES]
    features = processor.feature_extractor(sounds, sampling_rate=16000, return_tensors="pt").input_features
    ids = model.generate(features, language="en", task="transcribe", max_new_tokens=12)
    said = processor.batch_decode(ids, skip_special_tokens=True)
    assert [text.strip() for text in said] == ["low", "high"]


def test_what_is_written_before_a_token_and_what_never_begins_are_transformers_own(learned: Learned) -> None:
    training = SpeechTraining(next_attempt(create_run(recipe(learned.folder, learned.rows))))
    rows, marks = training.trainer.train_dataset.select(range(2)).to_list(), training.marks
    rows[0]["labels"] = rows[0]["labels"][:3]
    batch = training.collate(rows)
    before = shift_tokens_right(batch["labels"], marks.end, marks.start)
    assert torch.equal(batch["decoder_input_ids"], before)
    model: Any = WhisperForConditionalGeneration.from_pretrained(learned.folder)
    tokenizer = training.hearing.tokenizer
    features, prefix = batch["input_features"], [marks.prefix("en")] * 2
    never = {row[0] for row in write_down(model, features, prefix, marks, most=6)}
    model.generation_config.begin_suppress_tokens = list(never)
    ids = write_down(model, features, prefix, marks, most=6)
    theirs = model.generate(features, language="en", task="transcribe", max_new_tokens=6)
    said = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert said == tokenizer.batch_decode(theirs, skip_special_tokens=True)
    assert never.isdisjoint(row[0] for row in ids if row)


def test_an_adapter_learns_new_words_and_leaves_as_plain_peft_and_merged_weights(
    learned: Learned, tmp_path: Path
) -> None:
    rows = write_words(tmp_path / "rows", words=NEW_WORDS)
    run = create_run(recipe(learned.folder, rows, export={"merged": True}))
    assert attempt(run, method=SpeechTraining) == "finished"
    assert evaluations(run)[0].metrics["wer"] == 1.0 and evaluations(run)[-1].metrics["wer"] == 0.0
    adapter = run.export / "adapter"
    base = WhisperForConditionalGeneration.from_pretrained(learned.folder, dtype=torch.float32)
    plain = heard(adapter, PeftModel.from_pretrained(base, str(adapter)))
    attempted = SpeechTraining(next_attempt(run))
    attempted.trainer.load_weights(adapter)
    np.testing.assert_allclose(plain, heard(adapter, attempted.hearing.model), atol=1e-5)
    context = next_attempt(run)
    result = export_run(context)
    assert result.status == "pass", result.verdicts
    merged = run.export / "merged"
    loaded = WhisperForConditionalGeneration.from_pretrained(merged, dtype=torch.float32)
    np.testing.assert_allclose(heard(merged, loaded), plain, atol=0.02 * float(np.abs(plain).max()))


def test_a_stopped_run_goes_on_where_it_was(learned: Learned) -> None:
    wanted = recipe(
        learned.folder, learned.rows, adapter={"dropout": 0.1}, training={"max_steps": 6, "save_every": 2}
    )
    whole = steps(finished(wanted))
    run = create_run(wanted)
    assert attempt(run, stop_after=3, method=SpeechTraining) == "stopped"
    assert attempt(run, method=SpeechTraining) == "finished"
    assert steps(run) == whole and len(whole) == 6


def test_gguf_is_refused_before_training_with_the_reason(learned: Learned) -> None:
    plan = make_plan(recipe(learned.base, learned.rows, export={"gguf": ["q8_0"]}))
    assert any("whisper.cpp reads another format" in str(finding.model_dump()) for finding in plan.blocked())


def test_other_methods_are_refused_for_whisper_and_whisper_for_no_other_model(
    learned: Learned, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(8)))
    plan = make_plan(
        Recipe.model_validate({"model": {"name": str(learned.base)}, "data": {"train": str(texts)}})
    )
    assert any(finding.id == "L07" and "method.kind=speech" in finding.title for finding in plan.blocked())
    with pytest.raises(WhetError, match="trains Whisper models, and model is none") as caught:
        make_plan(recipe(Path("demo"), learned.rows))
    assert caught.value.code == "speech.model"


def test_bad_recordings_are_named_with_file_and_line(learned: Learned, tmp_path: Path) -> None:
    write_wav(tmp_path / "good.wav", tone(300))
    write_wav(tmp_path / "silent.wav", 0 * tone(300))
    write_wav(tmp_path / "long.wav", tone(300, seconds=1.5))
    (tmp_path / "cut.wav").write_bytes((tmp_path / "good.wav").read_bytes()[:900])
    (tmp_path / "text.wav").write_text("no sound")
    bad = [
        ({"audio": "absent.wav", "text": "low"}, "there is no audio file"),
        ({"audio": "silent.wav", "text": "low"}, "the audio is silent"),
        ({"audio": "long.wav", "text": "low"}, "1.5 s long, the model hears 1 s"),
        ({"audio": "cut.wav", "text": "low"}, "cut off"),
        ({"audio": "text.wav", "text": "low"}, "no WAV, FLAC"),
        ({"audio": "good.wav", "text": " "}, "field 'text' is empty"),
        ({"audio": None, "text": "low"}, "'audio' is missing or null"),
        ({"audio": "good.wav", "text": "low", "language": "xx"}, "'xx', expected one of de, en"),
    ]  # fmt: skip
    good: list[dict[str, Any]] = [{"audio": "good.wav", "text": "low", "language": "en"}] * 90
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in [*good, *(row for row, _ in bad)]))
    report = make_plan(
        recipe(learned.base, rows, method={"language": None}, data={"eval_fraction": 0})
    ).data.report
    assert report.train.rows == 90 and report.bad_rows == len(bad)
    for found, (_, reason), line in zip(report.bad, bad, range(91, 99), strict=True):
        assert (found.file, found.line) == (str(rows), line)
        assert reason in found.reason, found.reason


def test_a_language_must_be_named_and_a_changed_recording_is_read_again(
    learned: Learned, tmp_path: Path
) -> None:
    with pytest.raises(WhetError, match=r"none is named for \d+ training rows") as caught:
        make_plan(recipe(learned.base, learned.rows, method={"language": None}))
    assert caught.value.code == "speech.language"
    with pytest.raises(WhetError, match="no language 'fr'"):
        make_plan(recipe(learned.base, learned.rows, method={"language": "fr"}))
    rows = write_words(tmp_path / "rows", rows=4)
    wanted = recipe(learned.base, rows, data={"eval_fraction": 0})
    before = make_plan(wanted).data.digest
    assert make_plan(wanted).data.digest == before
    write_wav(tmp_path / "rows" / "sounds" / "0.wav", tone(500, seconds=0.3))
    assert make_plan(wanted).data.digest != before


def test_a_changed_recording_that_a_parquet_file_names_is_noticed(learned: Learned, tmp_path: Path) -> None:
    clips = pa.array([str(write_wav(tmp_path / "a.wav", tone(300)))], pa.large_string())
    pq.write_table(pa.table({"clip": clips, "text": ["low"]}), tmp_path / "rows.parquet")
    wanted = recipe(learned.base, tmp_path / "rows.parquet", data={"columns": {"audio": "clip"}})
    before = sounds_digest(wanted)
    assert sounds_digest(wanted) == before
    write_wav(tmp_path / "a.wav", tone(300, seconds=0.3))
    assert sounds_digest(wanted) != before


def test_english_only_models_need_no_language(tmp_path: Path) -> None:
    base = build_tiny_whisper(tmp_path / "model", english_only=True)
    rows = write_words(tmp_path / "rows", rows=8)
    plan = make_plan(recipe(base, rows, method={"language": None}, data={"eval_fraction": 0}))
    assert plan.data.report.train.length.max == len("high") + 2  # untimed, the letters, the end
    stored = Dataset.from_file(str(plan.data.train)).to_list()
    held = [json.loads(line) for line in rows.read_text().splitlines()]
    inside = [
        {
            "audio": {"path": row["audio"], "bytes": (rows.parent / row["audio"]).read_bytes()},
            "sentence": row["text"],
        }
        for row in held
    ]  # as `datasets` writes sounds into Parquet files
    Dataset.from_list(inside).to_parquet(str(tmp_path / "rows.parquet"))
    again = make_plan(
        recipe(base, tmp_path / "rows.parquet", method={"language": None}, data={"eval_fraction": 0})
    )
    assert Dataset.from_file(str(again.data.train)).to_list() == stored
    with pytest.raises(WhetError, match="knows English alone"):
        make_plan(recipe(base, rows, method={"language": None, "task": "translate"}))
