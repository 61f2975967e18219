"""Adapters change nothing before training, train in fp32, and say what they cannot do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.tiny_models import build_tiny_model

from whet.engine.adapted import adapter_parts, moved_to_whole
from whet.engine.errors import WhetError
from whet.engine.models.adapters import add_adapter, save_weights
from whet.engine.models.loading import Precision, load_model
from whet.engine.recipe import AdapterSection

PROMPT = torch.tensor([[5, 17, 99, 42, 8]])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "llama")


def adapted(path: Path, section: AdapterSection, seed: int = 1, **precision: Any) -> PeftModel:
    return add_adapter(load_model(path, Precision(**precision)).model, section, seed)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_a_fresh_adapter_changes_nothing(path: Path, kind: Any) -> None:
    base = load_model(path, Precision()).model(PROMPT).logits
    section = AdapterSection(kind=kind, modules_to_save=["lm_head"])
    model = adapted(path, section).eval()
    assert torch.allclose(model(PROMPT).logits, base, atol=1e-5)


def test_only_the_adapter_trains_and_in_fp32(path: Path) -> None:
    section = AdapterSection(rank=8, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    model = adapted(path, section, compute_dtype="bf16", base_precision="bf16")
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    assert {param.dtype for param in trained.values()} == {torch.float32}
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    lora = sum(param.numel() for name, param in trained.items() if "lora_" in name)
    assert lora == 2 * 8 * (64 + 64)  # layers x rank x (inputs + outputs)
    frozen = {param.dtype for param in model.parameters() if not param.requires_grad}
    assert frozen == {torch.bfloat16}


def test_the_seed_decides_the_start(path: Path) -> None:
    def a_matrix(seed: int) -> torch.Tensor:
        model = adapted(path, AdapterSection(target_modules=["q_proj"]), seed)
        return next(param for name, param in model.named_parameters() if "lora_A" in name)

    assert torch.equal(a_matrix(1), a_matrix(1))
    assert not torch.equal(a_matrix(1), a_matrix(2))


@pytest.mark.parametrize(("kind", "scale"), [("lora", 32 / 16), ("rslora", 32 / 4), ("dora", 32 / 16)])
def test_scale(path: Path, kind: Any, scale: float) -> None:
    model: Any = adapted(path, AdapterSection(kind=kind, rank=16, alpha=32))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == scale


def test_no_such_module_names_those_there_are(path: Path) -> None:
    with pytest.raises(WhetError) as caught:
        adapted(path, AdapterSection(target_modules=["query"]))
    assert caught.value.code == "adapter.no_target"
    assert "q_proj" in caught.value.hint and "down_proj" in caught.value.hint


def test_head_and_embedding_are_trained_whole(path: Path) -> None:
    section = AdapterSection(target_modules=["q_proj", "lm_head"], modules_to_save=["norm"])
    assert adapter_parts(section) == (["q_proj"], ["norm", "lm_head"])
    assert moved_to_whole(section) == ["lm_head"]
    assert (
        moved_to_whole(AdapterSection()) == moved_to_whole(AdapterSection(target_modules="all-linear")) == []
    )
    config: Any = adapted(path, section).peft_config["default"]
    assert (config.target_modules, config.modules_to_save) == ({"q_proj"}, ["norm", "lm_head"])


def test_saved_adapter_loads_elsewhere(path: Path, tmp_path: Path) -> None:
    model = add_adapter(load_model(path, Precision()).model, AdapterSection(), 1, name="some/base")
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_B" in name:
                param.normal_(std=0.1)
    save_weights(model, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"
    loaded = PeftModel.from_pretrained(load_model(path, Precision()).model, str(tmp_path))
    assert torch.allclose(loaded.eval()(PROMPT).logits, model.eval()(PROMPT).logits, atol=1e-6)


def test_a_tied_embedding_stays_tied(tmp_path: Path) -> None:
    path = build_tiny_model(tmp_path / "tied", tied=True)
    model: Any = adapted(path, AdapterSection(modules_to_save=["embed_tokens"]))
    inner = model.base_model.model
    with torch.no_grad():
        inner.model.embed_tokens.modules_to_save["default"].weight.add_(1.0)
    head = inner.lm_head
    weight = head.modules_to_save["default"].weight if hasattr(head, "modules_to_save") else head.weight
    assert torch.equal(weight, inner.model.embed_tokens.modules_to_save["default"].weight)


def test_answering_does_not_change_the_gradients_of_four_bit_weights(path: Path) -> None:
    """bitsandbytes rearranges them for answers on some CPUs, and then goes backward through them wrongly."""
    tokens = torch.arange(10, 42).view(2, 16)
    norms = []
    for answers_first in (False, True):
        model = adapted(path, AdapterSection(), base_precision="nf4").eval()
        if answers_first:
            with torch.no_grad():
                model(input_ids=tokens)
        model.train()
        model(input_ids=tokens, labels=tokens).loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
    assert norms[0] == norms[1] > 0
