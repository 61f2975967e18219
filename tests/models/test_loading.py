"""Models of every family load in the planned precision, from safetensors only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_models import build_tiny_model
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from whet.engine.errors import WhetError
from whet.engine.models.loading import Precision, load_model, load_tokenizer

PROMPT = torch.tensor([[5, 17, 99, 42, 8]])


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_families(tmp_path: Path, family: Any, tied: bool) -> None:
    handle = load_model(build_tiny_model(tmp_path / family, family, tied=tied), Precision())
    assert handle.family.name == family
    assert {param.dtype for param in handle.model.parameters()} == {torch.float32}
    assert handle.model(PROMPT).logits.shape == (1, 5, len(handle.tokenizer))
    assert handle.pad_id == handle.tokenizer.pad_token_id
    assert handle.positions == 512


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    models = [
        load_model(build_tiny_model(tmp_path / name, seed=seed), Precision()).model
        for name, seed in (("one", 3), ("same", 3), ("other", 4))
    ]
    one, same, other = (model(PROMPT).logits for model in models)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_base_weights_in_16_bit(tmp_path: Path) -> None:
    path = build_tiny_model(tmp_path / "model")
    handle = load_model(path, Precision(compute_dtype="bf16", base_precision="bf16"))
    assert {param.dtype for param in handle.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_quantised_on_the_way_in(tmp_path: Path, precision: str) -> None:
    path = build_tiny_model(tmp_path / "model", wide=True)
    exact = load_model(path, Precision()).model
    quantised = load_model(path, Precision(base_precision=precision)).model
    assert quantised.get_memory_footprint() < 0.5 * exact.get_memory_footprint()
    assert quantised.model.embed_tokens.weight.dtype == torch.float32
    unit = torch.eye(256)
    left, right = (model.model.layers[0].self_attn.q_proj(unit) for model in (exact, quantised))
    assert not torch.equal(left, right)
    # Normal weights: the error of NF4 is about 0.09 of their size, of int8 with a scale a row about 0.01.
    assert (left - right).norm() / left.norm() < {"int8": 0.03, "nf4": 0.12}[precision]


def test_a_checkpoint_that_is_already_quantised(tmp_path: Path) -> None:
    path = build_tiny_model(tmp_path / "model", wide=True)
    quantised = load_model(path, Precision(base_precision="nf4"))
    quantised.model.save_pretrained(tmp_path / "nf4")
    quantised.tokenizer.save_pretrained(tmp_path / "nf4")
    stored = json.loads((tmp_path / "nf4" / "config.json").read_text())
    assert stored["quantization_config"]["load_in_4bit"]
    again = load_model(tmp_path / "nf4", Precision(compute_dtype="fp32", base_precision="nf4"))
    assert torch.allclose(again.model(PROMPT).logits, quantised.model(PROMPT).logits, atol=1e-4)


def test_another_quantisation_is_refused_by_name(tmp_path: Path) -> None:
    path = build_tiny_model(tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WhetError) as caught:
        load_model(path, Precision())
    assert caught.value.code == "model.quantization" and "gptq" in caught.value.message


def test_a_template_of_ours_is_put_in_force(tmp_path: Path) -> None:
    path = build_tiny_model(tmp_path / "model")
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    tokenizer = load_model(path, Precision(), template=template).tokenizer
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "[x]"


def test_missing_weights_and_pickles_are_refused(tmp_path: Path) -> None:
    path = build_tiny_model(tmp_path / "model")
    (path / "model.safetensors").unlink()
    with pytest.raises(WhetError) as caught:
        load_model(path, Precision())
    assert caught.value.code == "model.load"
    torch.save({}, path / "pytorch_model.bin")
    with pytest.raises(WhetError) as caught:
        load_model(path, Precision())
    assert caught.value.code == "model.load"


def test_the_seed_of_the_process_is_left_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    build_tiny_model(tmp_path / "model")
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_tokenizer_is_what_its_file_says(tmp_path: Path) -> None:
    """transformers builds Qwen's class anew, with NFC and its own expression."""
    path = build_tiny_model(tmp_path / "model")
    config = path / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**settings, "tokenizer_class": "Qwen2Tokenizer"}), encoding="utf-8")
    decomposed = "Cafe\u0301 1234567"
    stored = (
        Tokenizer.from_file(str(path / "tokenizer.json")).encode(decomposed, add_special_tokens=False).ids
    )
    rebuilt = AutoTokenizer.from_pretrained(path, local_files_only=True)
    assert rebuilt(decomposed, add_special_tokens=False).input_ids != stored
    ours = load_tokenizer(path)
    assert ours(decomposed, add_special_tokens=False).input_ids == stored
    ours.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved", local_files_only=True)
    assert again(decomposed, add_special_tokens=False).input_ids == stored
    assert again.eos_token == rebuilt.eos_token and again.chat_template == rebuilt.chat_template
