"""A cap on attention's scores is not forgotten, whichever version of transformers computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.tiny_families import build
from support.tiny_models import build_tiny_model
from transformers import AutoModelForCausalLM

from whet.engine.models.capped_attention import attention_of


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, {"attn_implementation": "eager"}),
        ({"text_config": {"attn_logit_softcapping": 30.0}}, {"attn_implementation": "eager"}),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": None}, {}),
        ({"model_type": "llama", "text_config": None}, {}),
    ],
)
def test_what_is_said_of_a_configuration(tmp_path: Path, config: object, told: dict[str, str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert attention_of(tmp_path) == told


def test_the_cap_changes_what_a_loaded_model_computes(tmp_path: Path) -> None:
    build("gemma2").save_pretrained(tmp_path)
    ids_BT = torch.arange(3, 43)[None]
    logits = []
    for cap in (None, 0.05):
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path, attn_logit_softcapping=cap, **attention_of(tmp_path)
        )
        with torch.no_grad():
            logits.append(model(ids_BT).logits)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_others_keep_their_default(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "llama")
    assert attention_of(folder) == {}
