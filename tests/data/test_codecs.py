"""Rows of sound become codes by the family's codec, in a process of its own; what is missing is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from snac import SNAC
from support.tiny_csm import BOOKS, RATE, build_tiny_csm
from support.tiny_models import build_tiny_model
from support.tiny_whisper import tone, write_wav
from transformers import CsmForConditionalGeneration

from whet.engine.data import codecs
from whet.engine.data.audio import read_audio, samples_of
from whet.engine.data.codecs import codec_arguments
from whet.engine.data.voices import interleaved
from whet.engine.errors import WhetError
from whet.engine.methods.tts.section import TTSSection
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


def rows_of_sound(folder: Path) -> Path:
    write_wav(folder / "a.wav", tone(300, 0.3))
    write_wav(folder / "silent.wav", 0 * tone(300, 0.3))
    rows = [{"text": "yes", "audio": "a.wav"}] * 9 + [{"text": "no", "audio": "silent.wav"}]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def recipe(model: Path, rows: Path, method: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name": str(model), "max_length": 256},
            "data": {"train": str(rows), "bad_rows": "skip"},
            "method": {"kind": "tts", **method},
        }
    )


def test_csm_hears_by_the_codec_inside_it(tmp_path: Path) -> None:
    base = build_tiny_csm(tmp_path / "csm")
    report = make_plan(recipe(base, rows_of_sound(tmp_path), {})).data
    assert report.report.bad_rows == 1 and report.report.bad[0].reason == "the audio is silent"
    assert report.report.bad[0].line == 10
    model: Any = CsmForConditionalGeneration.from_pretrained(base)
    sound = samples_of(read_audio("a.wav", tmp_path, RATE, 10))
    with torch.no_grad():
        codes = model.codec_model.encode(torch.from_numpy(sound)[None, None]).audio_codes[0]
    assert len(codes.unique()) > 4
    stored = Dataset.from_file(str(report.train))[0]["frames"]
    assert stored == [*codes.T.flatten().tolist(), *[0] * BOOKS]


def test_orpheus_hears_by_snac(tmp_path: Path) -> None:
    shape: dict[str, Any] = {
        "sampling_rate": 2400, "encoder_dim": 4, "encoder_rates": [2, 5], "decoder_dim": 8,
        "decoder_rates": [5, 2], "attn_window_size": None, "codebook_size": 8, "codebook_dim": 4,
        "vq_strides": [4, 2, 1],
    }  # fmt: skip
    torch.manual_seed(0)
    codec = SNAC(**shape).eval()
    folder = tmp_path / "snac"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(shape))
    torch.save(codec.state_dict(), folder / "pytorch_model.bin")
    base = build_tiny_model(tmp_path / "llama", vocab_size=480)
    marks = {
        "text_end": 401, "human_start": 402, "human_end": 403, "ai_start": 404, "ai_end": 405,
        "speech_start": 406, "speech_end": 407, "codes_start": 410, "codebook_size": 8, "drop_repeats": False,
    }  # fmt: skip
    method = {"codec": str(folder), "orpheus": marks}
    data = make_plan(recipe(base, rows_of_sound(tmp_path), method)).data
    sound = torch.from_numpy(samples_of(read_audio("a.wav", tmp_path, 2400, 10)))[None, None]
    with torch.no_grad():
        levels = [one[0].tolist() for one in codec.encode(sound)]
    tokens = [410 + 8 * place + code for frame in interleaved(levels, 8) for place, code in enumerate(frame)]
    ids = Dataset.from_file(str(data.train))[0]["input_ids"]
    assert ids[ids.index(406) + 1 : ids.index(407)] == tokens


def test_a_codec_that_is_missing_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(**section: Any) -> WhetError:
        with pytest.raises(WhetError) as caught:
            codec_arguments(TTSSection(**section), section.get("layout", "orpheus"), tmp_path)
        assert caught.value.code == "tts.codec"
        return caught.value

    assert "method.codec=hubertsiuzdak/snac_24khz" in refusal().hint
    assert "global_codes" in refusal(layout="spark").hint
    monkeypatch.setattr(codecs, "find_spec", lambda name: None)
    assert "whet[tts]" in refusal(codec="x").hint
    base = build_tiny_csm(tmp_path / "csm")
    (tmp_path / "other").mkdir()
    with pytest.raises(WhetError, match="no config"):
        make_plan(recipe(base, rows_of_sound(tmp_path), {"layout": "csm", "codec": str(tmp_path / "other")}))
