"""What is known of a Whisper model from its configuration, before its weights are here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from support.tiny_whisper import build_tiny_whisper
from transformers import WhisperForConditionalGeneration

from whet.engine.models.facts import match_targets, read_model_facts
from whet.engine.models.families import family_of


def test_every_parameter_is_counted_from_the_configuration(tmp_path: Path) -> None:
    base = build_tiny_whisper(tmp_path / "model")
    model = WhisperForConditionalGeneration.from_pretrained(base)
    alone = tmp_path / "config"
    alone.mkdir()
    shutil.copy(base / "config.json", alone)
    for folder in (base, alone):
        facts = read_model_facts(folder)
        assert facts.parameters.total == sum(weight.numel() for weight in model.parameters())
        assert facts.parameters.exact and facts.tied and facts.max_positions == 32
    sizes: dict[str, int] = {}
    for name, weight in model.named_parameters():
        leaf = name.split(".")[-2]
        if leaf in family_of("whisper").target_modules:
            sizes[leaf] = sizes.get(leaf, 0) + weight.numel()
    matched = match_targets(facts, list(sizes))
    assert {name: sum(one.parameters for one in group) for name, group in matched.items()} == sizes


def test_the_published_small_model_has_its_size(tmp_path: Path) -> None:
    config = {
        "model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "d_model": 768,
        "encoder_layers": 12, "decoder_layers": 12, "encoder_attention_heads": 12, "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072, "vocab_size": 51865, "num_mel_bins": 80, "max_target_positions": 448,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert round(read_model_facts(tmp_path).parameters.total / 1e6) == 242  # "244M" in the paper's table 1
