"""Merged weights must compute what base + adapter compute, for every kind of adapter, and be a whole
folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file, save_file
from support.tiny_adapters import adapter_logits, folder_logits, logits, train_at_random
from support.tiny_models import build_tiny_model
from transformers import AutoModelForCausalLM

from whet.engine.errors import WhetError
from whet.engine.export.base_weights import BaseWeights
from whet.engine.export.merging import REPORT, merge

IDS = torch.arange(3, 43).reshape(2, 20)


def expected_logits(base: Path, adapter: Path) -> torch.Tensor:
    return adapter_logits(base, adapter, IDS)


def merged_logits(folder: Path) -> torch.Tensor:
    return folder_logits(folder, IDS)


@pytest.mark.parametrize(
    ("family", "tied", "config"),
    [
        ("llama", False, {}),
        ("llama", False, {"use_rslora": True}),
        ("llama", True, {"use_dora": True}),
        ("qwen2", False, {"bias": "all"}),
        ("qwen2", False, {"bias": "lora_only"}),
        ("llama", False, {"modules_to_save": ["embed_tokens", "lm_head"]}),
        ("llama", True, {"modules_to_save": ["embed_tokens"]}),
        ("llama", True, {"modules_to_save": ["lm_head"]}),
        ("llama", True, {"modules_to_save": ["embed_tokens", "lm_head"]}),
        ("llama", True, {"target_modules": ["q_proj", "lm_head"]}),
        ("llama", True, {"target_modules": ["q_proj", "embed_tokens"]}),
        ("llama", False, {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
        ("qwen3", False, {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}}),
    ],
)
def test_merged_logits_are_the_adapters(
    tmp_path: Path, family: Any, tied: bool, config: dict[str, Any]
) -> None:
    base = build_tiny_model(tmp_path / "base", family, tied=tied)
    adapter = train_at_random(base, tmp_path / "adapter", **config)
    in_blocks = 20 * 64 * 7  # seven rows of the embedding at a time
    report = merge(base, adapter, tmp_path / "merged", dtype="float32", memory=in_blocks)
    expected = expected_logits(base, adapter)
    torch.testing.assert_close(merged_logits(tmp_path / "merged"), expected, rtol=1e-4, atol=2e-5)
    assert (expected - merged_logits(base)).abs().max() > 0.05
    assert report.changed > 0 and report.dtype == "float32"


def test_a_wrong_scale_is_seen(tmp_path: Path) -> None:
    base = build_tiny_model(tmp_path / "base")
    adapter = train_at_random(base, tmp_path / "adapter")
    expected = expected_logits(base, adapter)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_rslora": True}))
    merge(base, adapter, tmp_path / "merged", dtype="float32")
    assert (merged_logits(tmp_path / "merged") - expected).abs().max() > 1e-2


def test_sixteen_bit_shards_tokenizer_and_config(tmp_path: Path) -> None:
    base = build_tiny_model(tmp_path / "base", dtype="bfloat16")
    adapter = train_at_random(base, tmp_path / "adapter")
    seen: list[tuple[float, float]] = []
    report = merge(
        base,
        adapter,
        tmp_path / "merged",
        shard_bytes=60_000,
        progress=lambda done, total: seen.append((done, total)),
    )
    merged = tmp_path / "merged"
    shards = sorted(merged.glob("model-*.safetensors"))
    assert len(shards) > 1 and report.bytes == sum(t.nbytes for f in shards for t in load_file(f).values())
    assert all(tensor.dtype is torch.bfloat16 for f in shards for tensor in load_file(f).values())
    assert json.loads((merged / "config.json").read_text())["dtype"] == "bfloat16"
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", REPORT):
        assert (merged / name).is_file(), name
    assert seen[-1][0] == seen[-1][1] == report.tensors
    torch.testing.assert_close(merged_logits(merged), expected_logits(base, adapter), rtol=0.1, atol=0.05)
    merge(base, adapter, merged)
    assert (merged / "model.safetensors").is_file() and not list(merged.glob("model-*"))
    assert not list(tmp_path.glob(".merged*"))


def test_a_foreign_folder_is_never_replaced(tmp_path: Path) -> None:
    base = build_tiny_model(tmp_path / "base")
    adapter = train_at_random(base, tmp_path / "adapter")
    with pytest.raises(WhetError, match="not replaced") as error:
        merge(base, adapter, base)
    assert error.value.code == "export.exists"
    assert (base / "model.safetensors").is_file()


def test_another_base_is_refused(tmp_path: Path) -> None:
    base = build_tiny_model(tmp_path / "base")
    adapter = train_at_random(base, tmp_path / "adapter")
    with pytest.raises(WhetError) as error:
        merge(build_tiny_model(tmp_path / "wide", wide=True), adapter, tmp_path / "merged")
    assert error.value.code == "merge.shape"
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {key.replace("layers.1", "layers.9"): v for key, v in weights.items()},
        adapter / "adapter_model.safetensors",
    )
    with pytest.raises(WhetError, match=r"layers\.9") as error:
        merge(base, adapter, tmp_path / "merged")
    assert error.value.code == "merge.unmatched"
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".merged*"))


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    base = build_tiny_model(tmp_path / "base")
    adapter = train_at_random(base, tmp_path / "adapter")
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WhetError, match=r"model\.safetensors .* ends within model") as error:
        merge(base, adapter, tmp_path / "merged")
    assert error.value.code == "model.broken_weights"
    assert not (tmp_path / "merged").exists()


def test_a_full_disk_is_seen_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = build_tiny_model(tmp_path / "base")
    adapter = train_at_random(base, tmp_path / "adapter")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(WhetError) as error:
        merge(base, adapter, tmp_path / "merged")
    assert error.value.code == "export.disk_full"


def rounded(base: Path, out: Path, **bits: Any) -> Path:
    from transformers import BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, quantization_config=BitsAndBytesConfig(**bits)
    )
    model.save_pretrained(out)
    return out


@pytest.mark.parametrize(
    "bits",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
        {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": torch.float32,
        },
        {"load_in_8bit": True},
    ],
    ids=["nf4", "nf4-double", "int8"],
)
def test_a_rounded_checkpoint_is_dequantised_and_says_so(tmp_path: Path, bits: dict[str, Any]) -> None:
    base = build_tiny_model(tmp_path / "base", wide=True)
    adapter = train_at_random(base, tmp_path / "adapter")
    held = rounded(base, tmp_path / "rounded", **bits)
    report = merge(held, adapter, tmp_path / "merged", dtype="float32")
    assert any("dequantised" in note for note in report.notes)
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    assert report.dtype == "float32"
    model = AutoModelForCausalLM.from_pretrained(held, dtype=torch.float32)
    weights = BaseWeights(held)
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            library = dequantize_module_weight(module).float()
            torch.testing.assert_close(weights.tensor(f"{name}.weight"), library, rtol=1e-2, atol=1e-4)
    # bitsandbytes' CPU kernels round activations too, so the logits agree less closely than the weights.
    expected = logits(PeftModel.from_pretrained(model, adapter), IDS)
    assert (merged_logits(tmp_path / "merged") - expected).abs().mean() < 0.03
    assert (merged_logits(base) - expected).abs().mean() > 0.1


def test_training_over_rounded_weights_merges_onto_the_original(tmp_path: Path) -> None:
    base = build_tiny_model(tmp_path / "base")
    adapter = train_at_random(base, tmp_path / "adapter")
    report = merge(base, adapter, tmp_path / "merged", dtype="float32", trained_precision="nf4")
    assert any("nf4" in note and "%" in note for note in report.notes)
    torch.testing.assert_close(
        merged_logits(tmp_path / "merged"), expected_logits(base, adapter), rtol=1e-4, atol=2e-5
    )
