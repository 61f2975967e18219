"""Weights in 4 and 8 bits load with plain transformers and compute what rounding in memory computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_adapters import folder_logits, train_at_random
from support.tiny_models import build_tiny_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel

from whet.engine.errors import WhetError
from whet.engine.export.merging import REPORT, merge
from whet.engine.export.targets.four_bit import nf4_config, write_four_bit
from whet.engine.export.targets.fp8 import E4M3, round_rows, row_scales, write_fp8

IDS = torch.arange(3, 43).reshape(2, 20)
ROW_BLOCKS = 20 * 256 * 7
"""Memory for seven rows of 256 numbers."""


def experts(folder: Path) -> Path:
    """A mixture whose experts are stacked in memory and single matrices in the files."""
    build_tiny_model(folder, "qwen3")
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    settings: dict[str, Any] = {
        "vocab_size": rows, "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 128,
        "head_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_experts": 4, "num_experts_per_tok": 2, "mlp_only_layers": [1], "initializer_range": 0.06,
        "max_position_embeddings": 256,
    }  # fmt: skip
    config = CONFIG_MAPPING["qwen3_moe"](**settings)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def build(folder: Path, kind: str) -> Path:
    """16-bit weights; ``merged`` ones come out of a merge."""
    if kind == "experts":
        return experts(folder)
    if kind == "merged":
        base = build_tiny_model(folder / "base", "llama", wide=True, dtype="bfloat16")
        merge(base, train_at_random(base, folder / "adapter", use_rslora=True), folder / "merged")
        return folder / "merged"
    return build_tiny_model(folder, "qwen2", wide=True, dtype="float16", tied=True)


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """Mean KL(p || q) in nats."""
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def rounded_in_memory(folder: Path) -> PreTrainedModel:
    """The 16-bit model with every linear layer and expert rounded to FP8 and back."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "_proj" in name and not name.endswith("bias"):
                for matrix in param if param.ndim == 3 else [param]:
                    scales = row_scales(matrix)
                    matrix.copy_(round_rows(matrix, scales).float() * scales.float())
    return model


@pytest.mark.parametrize("kind", ["merged", "tied", "experts"])
def test_nf4_is_what_transformers_makes_in_memory(tmp_path: Path, kind: str) -> None:
    source = build(tmp_path / "model", kind)
    report = write_four_bit(source, tmp_path / "out", memory=ROW_BLOCKS)
    dtype = getattr(torch, json.loads((source / "config.json").read_text())["dtype"])
    in_memory = folder_logits(source, IDS, dtype=dtype, quantization_config=nf4_config(dtype))
    again = folder_logits(tmp_path / "out", IDS, dtype="auto")
    assert torch.equal(again, in_memory)
    assert 1e-4 < divergence(folder_logits(source, IDS, dtype="auto"), again) < 0.3
    assert report.quantised == (11 if kind == "experts" else 14)
    assert (tmp_path / "out" / "tokenizer.json").is_file() and (tmp_path / "out" / REPORT).is_file()


@pytest.mark.parametrize("kind", ["merged", "tied", "experts"])
def test_fp8_is_the_rounded_model(tmp_path: Path, kind: str) -> None:
    source = build(tmp_path / "model", kind)
    report = write_fp8(source, tmp_path / "out", memory=ROW_BLOCKS)
    whole = CompressedTensorsConfig(dequantize=True)
    weights_only = folder_logits(tmp_path / "out", IDS, dtype="auto", quantization_config=whole)
    with torch.no_grad():
        expected = rounded_in_memory(source).eval()(IDS).logits.float()
    assert torch.equal(weights_only, expected)
    original = folder_logits(source, IDS, dtype="auto")
    assert 1e-6 < divergence(original, weights_only) < 0.02
    # Plain loading also rounds the activations of every token, as vLLM does.
    assert divergence(original, folder_logits(tmp_path / "out", IDS, dtype="auto")) < 0.04
    assert report.quantised == (23 if kind == "experts" else 14)


def test_fp8_files_hold_what_vllm_reads(tmp_path: Path) -> None:
    source = build_tiny_model(tmp_path / "model", "llama", wide=True, dtype="bfloat16")
    write_fp8(source, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    weight, scale = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight_scale"
    assert tensors[weight].dtype is E4M3 and list(tensors[weight].shape) == [512, 256]
    assert tensors[scale].dtype is torch.bfloat16 and list(tensors[scale].shape) == [512, 1]
    assert tensors["lm_head.weight"].dtype is torch.bfloat16 and "lm_head.weight_scale" not in tensors
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (said["quant_method"], said["format"], said["ignore"]) == (
        "compressed-tensors", "float-quantized", ["lm_head"],
    )  # fmt: skip
    group = said["config_groups"]["group_0"]
    assert (group["weights"]["strategy"], group["input_activations"]["dynamic"]) == ("channel", True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_keep_rows_within_e4m3(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 32) * torch.logspace(-5, 3, 64)[:, None]
    weight[3] = 0
    weight = weight.to(dtype)
    scales = row_scales(weight)
    rounded = round_rows(weight, scales).float()
    assert scales.dtype is dtype and torch.isfinite(rounded).all()
    assert (weight.float().abs().amax(1, keepdim=True) <= 448 * scales.float()).all()
    # Half a step: 2^-4 of a normal number, 2^-10 of the scale below.
    error = (rounded * scales.float() - weight.float()).abs()
    assert (error <= weight.float().abs() / 16 + scales.float() / 1024 + 1e-12).all()


@pytest.mark.parametrize("write", [write_four_bit, write_fp8])
def test_refusals(tmp_path: Path, write: Any) -> None:
    source = build_tiny_model(tmp_path / "model", "llama", wide=True, dtype="bfloat16")
    with pytest.raises(WhetError) as refusal:
        write(source, source)
    assert refusal.value.code == "export.exists"
    write(source, tmp_path / "out")
    with pytest.raises(WhetError) as refusal:
        write(tmp_path / "out", tmp_path / "twice")
    assert refusal.value.code in ("export.quantized_source", "merge.quantized")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(WhetError, match=r"layers\.2") as refusal:
        write(source, tmp_path / "deep")
    assert refusal.value.code == "export.unknown_layout"
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["TheirOwnLM"]}))
    with pytest.raises(WhetError, match="TheirOwnLM") as refusal:
        write(source, tmp_path / "own")
    assert refusal.value.code == "export.few_bits"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_an_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    source = build_tiny_model(tmp_path / "model", "llama", wide=True, dtype="bfloat16")

    def stop(done: float, total: float) -> None:
        if done > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_fp8(source, tmp_path / "out", stop)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
