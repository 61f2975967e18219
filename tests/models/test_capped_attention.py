"""A cap on attention's scores is not forgotten, whichever version of transformers computes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.tiny_families import build
from support.tiny_models import build_tiny_model, write_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    PreTrainedModel,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
    T5GemmaModuleConfig,
    VaultGemmaConfig,
)

from whet.engine.export import merge_process
from whet.engine.export.embedding_reference import EmbeddingReference
from whet.engine.methods.classification.loading import load_options
from whet.engine.methods.embedding.loading import load_folder
from whet.engine.models.capped_attention import CAP, DEFAULTS, attention_of
from whet.engine.models.loading import Precision, weight_options
from whet.engine.models.sentence_folder import read_sentence_folder


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, {"attn_implementation": "eager"}),
        ({"text_config": {"attn_logit_softcapping": 30.0}}, {"attn_implementation": "eager"}),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": None}, {}),
        ({"model_type": "llama", "text_config": None}, {}),
        ({"model_type": "gemma2"}, {"attn_implementation": "eager"}),
        ({"model_type": "gemma2", "attn_logit_softcapping": None}, {}),
        (
            {"model_type": "paligemma", "text_config": {"model_type": "gemma2"}},
            {"attn_implementation": "eager"},
        ),
        ({"model_type": "t5gemma"}, {"attn_implementation": "eager"}),
        (
            {
                "model_type": "t5gemma",
                "encoder": {"model_type": "t5_gemma_module", "attn_logit_softcapping": None},
                "decoder": {"model_type": "t5_gemma_module"},
            },
            {"attn_implementation": "eager"},
        ),
        ({"model_type": "t5gemma", "encoder": {"attn_logit_softcapping": None}, "decoder": {}}, {}),
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


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What attention each model was loaded with, as it was asked for; None where transformers chose."""
    asked: list[str | None] = []
    load: Any = PreTrainedModel.from_pretrained

    def noted(kind: type, *args: Any, config: Any = None, **options: Any) -> Any:
        asked.append(options.get("attn_implementation") or getattr(config, "_attn_implementation", None))
        return load.__func__(kind, *args, config=config, **options)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(noted))
    return asked


@pytest.fixture
def capped(tmp_path: Path) -> Path:
    folder = tmp_path / "capped"
    model = build("gemma2")
    model.resize_token_embeddings(512)
    model.save_pretrained(folder)
    write_tokenizer(folder, chat=False)
    return folder


def test_an_embedding_model_and_its_reference_are_told(capped: Path, told: list[str | None]) -> None:
    load_folder(capped, Precision()).save(str(capped / "saved"))
    EmbeddingReference(read_sentence_folder(capped / "saved"))
    assert told == ["eager", "eager"]


def test_a_head_is_told(capped: Path) -> None:
    plan: Any = SimpleNamespace(resolved=Precision(), model=SimpleNamespace(path=capped))
    config = AutoConfig.from_pretrained(capped)
    assert load_options(plan, config, False)["attn_implementation"] == "eager"


def test_who_compares_merged_weights_is_told(capped: Path, told: list[str | None], tmp_path: Path) -> None:
    section = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(capped), section)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    folders = {"base": str(capped), "adapter": str(tmp_path / "adapter"), "merged": str(capped)}
    told.clear()
    merge_process.main(
        folders | {"texts": ["a b c"], "rows": [], "positions": 8, "share": 0.9}, lambda *_: None
    )
    assert told == ["eager", "eager"]


def test_a_folder_without_a_configuration_says_nothing(tmp_path: Path) -> None:
    assert attention_of(tmp_path) == {}


@pytest.mark.parametrize("config", [Gemma2Config, T5GemmaModuleConfig, VaultGemmaConfig, Gemma3TextConfig])
def test_the_defaults_are_those_of_the_classes(config: Any) -> None:
    assert getattr(config(), CAP) == DEFAULTS.get(config.model_type)


def test_an_encoder_with_a_decoder_is_told(tmp_path: Path) -> None:
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "layer_types": ["full_attention"],
    }  # fmt: skip
    config = T5GemmaConfig(encoder=sizes, decoder={**sizes, "cross_attention_hidden_size": 32})
    config.save_pretrained(tmp_path)
    T5GemmaForConditionalGeneration(config).save_pretrained(tmp_path)
    options = weight_options(tmp_path, config, Precision())
    loaded: Any = T5GemmaForConditionalGeneration.from_pretrained(tmp_path, config=config, **options)
    model = loaded[0].model
    parts = (model.encoder.config, model.decoder.config)
    assert [part._attn_implementation for part in parts] == ["eager", "eager"]
