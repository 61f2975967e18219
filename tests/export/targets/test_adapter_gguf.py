"""An adapter over the base in llama.cpp computes what PEFT computes, or is refused with a reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from support.gguf_logits import kl, llama_log_probs, log_softmax, model_log_probs
from support.tiny_adapters import LINEAR, adapter_logits, train_at_random
from support.tiny_models import build_tiny_model

from whet.engine.errors import WhetError
from whet.engine.export.gguf.convert import convert
from whet.engine.export.targets.adapter_gguf import write_adapter_gguf

IDS = np.random.default_rng(0).integers(0, 390, 48).tolist()
SAME = 1e-9
"""Mean KL in nats below which two float32 computations are the same."""


def peft_log_probs(base: Path, adapter: Path) -> np.ndarray[Any, Any]:
    return log_softmax(adapter_logits(base, adapter, torch.tensor([IDS]))[0].numpy())


def phi3(folder: Path) -> Path:
    """A model whose q, k and v, and whose gate and up, are one matrix each."""
    from transformers import Phi3Config, Phi3ForCausalLM

    rows = json.loads((build_tiny_model(folder, "llama") / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=rows, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, original_max_position_embeddings=256,
        initializer_range=0.1, pad_token_id=0, sliding_window=None,
    )  # fmt: skip
    Phi3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {}),
        ("mistral", {"use_rslora": True}),
        ("qwen2", {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}}),
        (
            "qwen3",
            {"target_modules": [*LINEAR, "lm_head"], "use_rslora": True, "rank_pattern": {"v_proj": 2}},
        ),
        ("phi3", {"target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}),
    ],
)
def test_llama_cpp_computes_what_peft_does(tmp_path: Path, family: Any, config: dict[str, Any]) -> None:
    folder = tmp_path / "base"
    base = phi3(folder) if family == "phi3" else build_tiny_model(folder, family)
    adapter = train_at_random(base, tmp_path / "adapter", **config)
    report = write_adapter_gguf(adapter, base, tmp_path / "adapter.gguf")
    expected = peft_log_probs(base, adapter)
    over_base = llama_log_probs(convert(base, tmp_path / "base.gguf", "f32"), IDS, tmp_path / "adapter.gguf")
    assert kl(expected, over_base) < SAME
    assert kl(expected, model_log_probs(base, IDS)) > 1e-2
    assert report.pairs == len(GGUFReader(tmp_path / "adapter.gguf").tensors) // 2
    assert not list(tmp_path.glob(".adapter.gguf*"))


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    base = build_tiny_model(tmp_path / "base")
    adapter = train_at_random(base, tmp_path / "adapter", r=4, lora_alpha=6, use_rslora=True)
    write_adapter_gguf(adapter, base, tmp_path / "a.gguf", name="phi-3 of mine")
    fields = GGUFReader(tmp_path / "a.gguf").fields
    said = {key: fields[key].contents() for key in fields if not key.startswith("GGUF.")}
    assert said == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "general.name": "phi_3 of mine",
        "adapter.type": "lora",
        "adapter.lora.alpha": 12.0,  # 6 * sqrt(4), as llama.cpp divides by 4
    }


@pytest.mark.parametrize(
    ("tied", "config", "words"),
    [
        (False, {"use_dora": True}, "DoRA"),
        (False, {"modules_to_save": ["lm_head"]}, "trained whole"),
        (False, {"bias": "all", "family": "qwen2"}, "trained whole"),
        (False, {"target_modules": ["q_proj", "embed_tokens"]}, "embedding"),
        (True, {"target_modules": ["q_proj", "lm_head"]}, "shares with its embedding"),
    ],
)
def test_what_llama_cpp_cannot_lay_over_is_refused(
    tmp_path: Path, tied: bool, config: dict[str, Any], words: str
) -> None:
    base = build_tiny_model(tmp_path / "base", config.pop("family", "llama"), tied=tied)
    adapter = train_at_random(base, tmp_path / "adapter", **config)
    with pytest.raises(WhetError, match=words) as refusal:
        write_adapter_gguf(adapter, base, tmp_path / "a.gguf")
    assert refusal.value.code == "export.adapter_gguf" and "--gguf" in (refusal.value.hint or "")
    assert not (tmp_path / "a.gguf").exists()


def test_a_family_without_a_gguf_is_refused(tmp_path: Path) -> None:
    base = build_tiny_model(tmp_path / "base")
    adapter = train_at_random(base, tmp_path / "adapter")
    other = tmp_path / "other"
    shutil.copytree(base, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(WhetError) as refusal:
        write_adapter_gguf(adapter, other, tmp_path / "a.gguf")
    assert refusal.value.code == "gguf.unsupported"
