"""The converter against transformers: the same distribution from the same ids, and clear refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from support.gguf_logits import kl, llama_log_probs, model_log_probs
from support.tiny_models import FamilyName, build_tiny_model

from whet.engine.errors import WhetError
from whet.engine.export import files as files_module
from whet.engine.export.gguf import convert as convert_module
from whet.engine.export.gguf.architectures import supported_architecture
from whet.engine.export.gguf.convert import convert
from whet.engine.export.gguf.metadata import clean_name
from whet.engine.export.gguf.tensors import DType, PlannedTensor

IDS = np.random.default_rng(0).integers(0, 390, 96).tolist()
SAME = 1e-9
"""Mean KL in nats below which two float32 computations are the same; the right ones measure 1e-12."""

LLAMA_3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("llama") / "model", "llama")


def edit_config(source: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(source, target)
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


def divergence(model: Path, gguf: Path, ids: list[int] = IDS) -> float:
    return kl(model_log_probs(model, ids), llama_log_probs(gguf, ids))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_same_distribution(tmp_path: Path, family: FamilyName, tied: bool) -> None:
    model = build_tiny_model(tmp_path / "model", family, tied=tied)
    gguf = convert(model, tmp_path / "model.gguf", "f32")
    assert divergence(model, gguf) < SAME
    names = {tensor.name for tensor in GGUFReader(gguf).tensors}
    assert ("output.weight" in names) is not tied


@pytest.mark.parametrize(
    "rope",
    [
        LLAMA_3_ROPE,
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rope_scaling(tmp_path: Path, llama: Path, rope: dict[str, Any]) -> None:
    model = edit_config(llama, tmp_path / "scaled", rope_parameters=rope)
    unscaled = convert(llama, tmp_path / "unscaled.gguf", "f32")
    assert divergence(model, convert(model, tmp_path / "scaled.gguf", "f32")) < SAME
    assert divergence(model, unscaled) > 1e-4


def test_old_spelling_of_rope(tmp_path: Path, llama: Path) -> None:
    scaling = {key: value for key, value in LLAMA_3_ROPE.items() if key != "rope_theta"}
    old = edit_config(llama, tmp_path / "old", rope_parameters=None, rope_theta=500.0, rope_scaling=scaling)
    new = edit_config(llama, tmp_path / "new", rope_parameters=scaling | {"rope_theta": 500.0})
    one = convert(old, tmp_path / "old.gguf", "f32", name="m")
    assert one.read_bytes() == convert(new, tmp_path / "new.gguf", "f32", name="m").read_bytes()


def test_biases_of_llama(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    model = build_tiny_model(tmp_path / "model", "llama")
    config = LlamaConfig.from_pretrained(model, attention_bias=True, mlp_bias=True)
    torch.manual_seed(0)
    biased = AutoModelForCausalLM.from_config(config)
    for name, parameter in biased.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    biased.save_pretrained(model)
    assert divergence(model, convert(model, tmp_path / "biased.gguf", "f32")) < SAME


@pytest.mark.parametrize(("dtype", "gate"), [("f16", 1e-5), ("bf16", 1e-3)])
def test_sixteen_bits(tmp_path: Path, llama: Path, dtype: DType, gate: float) -> None:
    assert 0 < divergence(llama, convert(llama, tmp_path / "half.gguf", dtype)) < gate


def test_bf16_weights_stay_exact(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = build_tiny_model(tmp_path / "model", "qwen2", dtype="bfloat16")
    gguf = convert(model, tmp_path / "model.gguf", "bf16")
    weights = load_file(model / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in GGUFReader(gguf).tensors}
    raw = tensors["blk.1.ffn_down.weight"].data.view(np.int16).reshape(64, 128)
    import torch

    assert (raw == weights["model.layers.1.mlp.down_proj.weight"].view(torch.int16).numpy()).all()
    assert tensors["blk.1.attn_q.bias"].tensor_type.name == "F32"


def test_shards_give_the_same_file(tmp_path: Path, llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    sharded = tmp_path / "sharded"
    shutil.copytree(llama, sharded)
    (sharded / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(sharded, max_shard_size="150KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert divergence(llama, convert(sharded, tmp_path / "sharded.gguf", "f32")) < SAME


@pytest.mark.parametrize("mutation", ["permutation", "epsilon", "theta", "swapped"])
def test_the_oracle_sees_mistakes(
    tmp_path: Path, llama: Path, mutation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converter with one mistake must miss the gate, or the tests above prove nothing."""
    source = llama
    if mutation == "epsilon":
        source = edit_config(llama, tmp_path / "wrong", rms_norm_eps=1e-5)
    elif mutation == "theta":
        rope = {"rope_type": "default", "rope_theta": 11000.0}
        source = edit_config(llama, tmp_path / "wrong", rope_parameters=rope)
    else:
        plan = convert_module.plan_tensors
        names = {
            "blk.0.ffn_up.weight": "blk.0.ffn_gate.weight",
            "blk.0.ffn_gate.weight": "blk.0.ffn_up.weight",
        }

        def mistaken(*args: Any) -> list[PlannedTensor]:
            if mutation == "swapped":
                return [replace(one, name=names.get(one.name, one.name)) for one in plan(*args)]
            return [replace(one, transform=None) for one in plan(*args)]

        monkeypatch.setattr(convert_module, "plan_tensors", mistaken)
    assert divergence(llama, convert(source, tmp_path / "wrong.gguf", "f32")) > 2 * SAME


def test_progress_counts_bytes(tmp_path: Path, llama: Path) -> None:
    seen: list[tuple[float, float]] = []
    convert(llama, tmp_path / "model.gguf", "f16", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# Refusals


@pytest.mark.parametrize(
    ("model_type", "changes", "words"),
    [
        ("gemma9", {}, "gemma9"),
        ("qwen2", {"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ("qwen3", {"rope_parameters": LLAMA_3_ROPE}, "llama3"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("qwen2", {"hidden_act": "gelu"}, "gelu"),
        ("llama", {"partial_rotary_factor": 0.5}, "0.5"),
        ("qwen3", {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 8}}, "YaRN"),
    ],
)
def test_unsupported_models_are_told_apart(model_type: str, changes: dict[str, Any], words: str) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    reason = supported_architecture(model_type, sizes | changes)
    assert reason is not None and words in reason


def rewrite(source: Path, target: Path, change: Any) -> Path:
    """A copy of the model whose weights ``change`` edited in place."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def spoil(code: str, weights: dict[str, Any]) -> None:
    import torch

    name = "model.layers.1.mlp.up_proj.weight"
    if code == "gguf.missing_tensor":
        del weights[name]
    elif code == "gguf.unknown_tensor":
        weights["model.layers.1.mlp.extra.weight"] = torch.ones(2, 2)
    elif code == "gguf.quantized_source":
        weights[name] = torch.ones(8, 1, dtype=torch.uint8)
    elif code == "gguf.not_finite":
        weights[name][0, 0] = float("nan")
    elif code == "gguf.f16_overflow":
        weights[name][0, 0] = 1e5
    elif code == "gguf.vocab_mismatch":
        weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:-2].contiguous()


@pytest.mark.parametrize(
    "code",
    [
        "gguf.missing_tensor", "gguf.unknown_tensor", "gguf.quantized_source", "gguf.not_finite",
        "gguf.f16_overflow", "gguf.vocab_mismatch",
    ],
)  # fmt: skip
def test_spoilt_weights(tmp_path: Path, llama: Path, code: str) -> None:
    model = rewrite(llama, tmp_path / "spoilt", lambda weights: spoil(code, weights))
    with pytest.raises(WhetError) as caught:
        convert(model, tmp_path / "out" / "model.gguf", "f16")
    assert caught.value.code == code and caught.value.hint
    assert not list(tmp_path.glob("out/*")) and not list(tmp_path.glob("out/.*"))


def test_a_bias_llama_cpp_would_drop_is_refused(tmp_path: Path) -> None:
    import torch

    model = build_tiny_model(tmp_path / "mistral", "mistral")
    spoilt = rewrite(
        model,
        tmp_path / "biased",
        lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}),
    )
    with pytest.raises(WhetError, match=r"q_proj\.bias"):
        convert(spoilt, tmp_path / "model.gguf", "f32")


@pytest.mark.parametrize(
    ("files", "code"), [(["adapter_config.json"], "gguf.adapter_only"), ([], "gguf.no_weights")]
)
def test_folders_without_weights(tmp_path: Path, llama: Path, files: list[str], code: str) -> None:
    shutil.copytree(llama, tmp_path / "empty")
    (tmp_path / "empty" / "model.safetensors").unlink()
    for name in files:
        (tmp_path / "empty" / name).write_text("{}")
    with pytest.raises(WhetError) as caught:
        convert(tmp_path / "empty", tmp_path / "model.gguf", "f16")
    assert caught.value.code == code


def test_a_torn_file_is_named(tmp_path: Path, llama: Path) -> None:
    shutil.copytree(llama, tmp_path / "torn")
    path = tmp_path / "torn" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WhetError, match=r"model\.safetensors") as caught:
        convert(tmp_path / "torn", tmp_path / "model.gguf", "f16")
    assert caught.value.code == "gguf.broken_weights"


# Whole or not at all


def test_disk_full_says_how_much(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=4321))
    with pytest.raises(WhetError, match="4321 bytes") as caught:
        convert(llama, tmp_path / "model.gguf", "f16")
    assert caught.value.code == "export.disk_full"
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_the_old_file(tmp_path: Path, llama: Path) -> None:
    out = tmp_path / "model.gguf"
    out.write_bytes(b"the file of before")

    def interrupt(done: float, total: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(llama, out, "f16", progress=interrupt)
    assert list(tmp_path.iterdir()) == [out] and out.read_bytes() == b"the file of before"


def test_a_killed_export_is_swept_by_the_next(tmp_path: Path, llama: Path) -> None:
    out = tmp_path / "model.gguf"
    script = (
        "import os, signal; from pathlib import Path; from whet.engine.export.gguf.convert import convert;"
        f"convert(Path({str(llama)!r}), Path({str(out)!r}), 'f16', "
        "progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL))"
    )
    assert subprocess.run([sys.executable, "-P", "-c", script]).returncode == -signal.SIGKILL
    assert not out.exists() and len(list(tmp_path.iterdir())) == 1
    convert(llama, out, "f16")
    assert list(tmp_path.iterdir()) == [out]
    assert os.stat(out).st_mode & 0o444


# Metadata


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("org/Phi-3-mini", "Phi_3-mini"),
        ("my-phi3-tune", "my-phi_3-tune"),
        ("modern-bert-x", "modern_bert-x"),
        ("/home/me/runs/a b\n", "a b"),
        ("", "model"),
    ],
)
def test_names_cannot_switch_llama_cpp(name: str, clean: str) -> None:
    assert clean_name(name) == clean


def field(path: Path, key: str) -> Any:
    return GGUFReader(path).fields[key].contents()


def test_a_window_in_force_ends_the_context(tmp_path: Path) -> None:
    mistral = build_tiny_model(tmp_path / "mistral", "mistral")
    windowed = edit_config(mistral, tmp_path / "windowed", sliding_window=128)
    assert field(convert(mistral, tmp_path / "whole.gguf", "f16"), "llama.context_length") == 512
    assert field(convert(windowed, tmp_path / "windowed.gguf", "f16"), "llama.context_length") == 128


def test_name_and_type_in_the_file(tmp_path: Path, llama: Path) -> None:
    path = convert(llama, tmp_path / "m.gguf", "bf16", name="phi3 tuned")
    assert field(path, "general.name") == "phi_3 tuned"
    assert field(path, "general.file_type") == 32
