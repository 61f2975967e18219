"""Facts from JSON alone, held against the real models on the meta device and against published sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.plan_inputs import adapter
from support.tiny_models import build_tiny_model

from whet.engine.adapted import trainable_parameters
from whet.engine.errors import WhetError
from whet.engine.models.facts import ModelFacts, match_targets, read_model_facts, resolve_model
from whet.engine.models.families import FAMILIES, UNKNOWN, family_of
from whet.engine.models.families.descriptor import LINEAR_NAMES
from whet.engine.recipe import AdapterSection

SMALL: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}

# Published: configuration as on the hub, parameters as its model card or safetensors metadata counts them.
PUBLISHED = {
    "Llama-3.1-8B": (
        8_030_261_248,
        {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
         "tie_word_embeddings": False, "max_position_embeddings": 131072, "torch_dtype": "bfloat16"},
    ),
    "Llama-3.2-1B": (
        1_235_814_400,
        {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
         "tie_word_embeddings": True},
    ),
    "Mistral-7B-v0.1": (
        7_241_732_096,
        {"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
         "tie_word_embeddings": False, "sliding_window": 4096},
    ),
    "Qwen2.5-0.5B": (
        494_032_768,
        {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
         "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
         "tie_word_embeddings": True},
    ),
    "Qwen3-0.6B": (
        596_049_920,
        {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
         "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
         "tie_word_embeddings": True, "attention_bias": False},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("facts") / "model", "llama")


def facts_of(config: dict[str, Any], folder: Path) -> ModelFacts:
    """Facts of a directory that holds nothing but config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return read_model_facts(folder)


def meta_model(config: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "family, extra",
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
        ("mistral", {"head_dim": 24}),
        ("qwen2", {}),
        ("qwen3", {}),  # head_dim left to the family's default
        ("qwen3", {"head_dim": 32, "attention_bias": True}),
    ],
)
def test_counts_equal_the_real_model(family: str, extra: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    import torch
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[family](**{**SMALL, **extra, "tie_word_embeddings": tied})
    model = meta_model(config)
    config.save_pretrained(tmp_path)
    facts = read_model_facts(tmp_path)

    assert facts.family == family
    assert facts.tied is tied
    assert facts.parameters.exact
    assert facts.parameters.total == sum(param.numel() for param in model.parameters())
    assert facts.parameters.embedding == model.get_input_embeddings().weight.numel()
    real: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and not (tied and name == "lm_head"):
            leaf = name.rsplit(".", 1)[-1]
            real[leaf] = real.get(leaf, 0) + sum(param.numel() for param in module.parameters())
    assert {m.pattern.rsplit(".", 1)[-1]: m.parameters for m in facts.parameters.linear} == real


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_from_config_alone(name: str, tmp_path: Path) -> None:
    total, config = PUBLISHED[name]
    facts = facts_of(config, tmp_path)
    assert facts.parameters.total == total
    assert facts.weight_files == [] and facts.missing_weight_files


def test_tiny_model_facts_agree_with_its_files(tiny_model: Path) -> None:
    facts = read_model_facts(tiny_model, "tiny")
    stored = facts.parameters.total * 4
    assert stored <= facts.weight_bytes < stored + 20_000  # fp32 plus the header
    assert facts.has_tokenizer_json and facts.has_chat_template
    assert facts.embedding_rows == facts.vocab_size
    assert len(facts.eos_ids) == 2  # end of turn and end of text, from generation_config.json
    assert ModelFacts.model_validate_json(facts.model_dump_json()) == facts


def test_unknown_family_is_counted_from_its_weights(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, StableLmConfig

    config = StableLmConfig(**SMALL, bos_token_id=1, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    facts = read_model_facts(tmp_path)
    assert facts.family == "unknown" and facts.parameters.exact
    assert facts.parameters.total == sum(param.numel() for param in model.parameters())
    leaves = {module.pattern.rsplit(".", 1)[-1] for module in facts.parameters.linear}
    assert leaves == {*LINEAR_NAMES, "lm_head"}

    (tmp_path / "model.safetensors").unlink()
    assert not read_model_facts(tmp_path).parameters.exact


@pytest.mark.parametrize(
    "section",
    [
        adapter(rank=4),
        adapter(rank=4, target_modules="all-linear"),
        adapter(rank=4, target_modules=["q_proj", "mlp.down_proj"]),
        adapter(rank=4, target_modules=["model.layers.1.self_attn.v_proj"]),
        adapter(rank=4, kind="dora"),
        adapter(rank=4, bias="lora_only", target_modules=["q_proj", "o_proj"]),
        adapter(rank=4, bias="all", target_modules=["o_proj"]),
        adapter(rank=4, modules_to_save=["lm_head", "embed_tokens"]),
    ],
    ids=lambda section: "-".join(str(value) for value in section.model_dump(exclude_unset=True).values()),
)
def test_trainable_parameters_equal_peft(section: AdapterSection, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config

    config = Qwen2Config(**SMALL, tie_word_embeddings=False)
    config.save_pretrained(tmp_path)
    wrapped = get_peft_model(
        meta_model(config),
        LoraConfig(
            r=section.rank,
            target_modules=section.target_modules,
            bias=section.bias,
            use_dora=section.kind == "dora",
            modules_to_save=section.modules_to_save or None,
            task_type="CAUSAL_LM",
        ),
    )
    real = sum(param.numel() for param in wrapped.parameters() if param.requires_grad)
    assert trainable_parameters(read_model_facts(tmp_path), section) == real


def test_targets_match_by_the_end_of_the_path(tmp_path: Path) -> None:
    facts = facts_of(PUBLISHED["Qwen3-0.6B"][1], tmp_path)
    found = match_targets(facts, ["q_proj", "proj", "self_attn.k_proj", "query"])
    assert [len(found[name]) for name in ("q_proj", "proj", "self_attn.k_proj", "query")] == [1, 0, 1, 0]
    one = match_targets(facts, ["model.layers.5.mlp.up_proj"])["model.layers.5.mlp.up_proj"]
    assert [module.count for module in one] == [1]


@pytest.mark.parametrize(
    "quantization, expected",
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"}, "nf4"),
        ({"load_in_8bit": True, "quant_method": "bitsandbytes"}, "int8"),
        ({"quant_method": "gptq"}, "gptq"),
        (None, None),
    ],
)
def test_quantised_checkpoints_are_recognised(
    quantization: dict[str, Any] | None, expected: str | None, tmp_path: Path
) -> None:
    config = PUBLISHED["Llama-3.2-1B"][1] | ({"quantization_config": quantization} if quantization else {})
    assert facts_of(config, tmp_path).quantization == expected


def test_digest_follows_the_shape_only(tmp_path: Path) -> None:
    config = PUBLISHED["Qwen3-0.6B"][1]
    first, copy = facts_of(config, tmp_path / "a"), facts_of(config, tmp_path / "b")
    wider = facts_of(config | {"hidden_size": 2048}, tmp_path / "c")
    assert first.digest() == copy.digest() != wider.digest()


def test_families_name_templates_that_exist() -> None:
    from whet.engine.data.chat_templates import TEMPLATES

    for family in FAMILIES:
        assert family.chat_template is None or family.chat_template in TEMPLATES
        assert all(family_of(model_type) is family for model_type in family.model_types)
    assert family_of("no-such-model") is UNKNOWN


def test_resolve_names_the_nearest_directory(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    with pytest.raises(WhetError) as caught:
        resolve_model(str(tmp_path / "my-modle"))
    assert caught.value.code == "model.not_found"
    assert str(tmp_path / "my-model") in caught.value.hint


def test_resolve_offline_names_the_flag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WHET_OFFLINE", "1")
    with pytest.raises(WhetError) as caught:
        resolve_model("some-org/never-downloaded-model")
    assert caught.value.code == "model.not_found"
    assert "some-org/never-downloaded-model" in caught.value.message
    assert "WHET_OFFLINE" in caught.value.hint


def test_resolve_refuses_what_is_no_model(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(WhetError) as caught:
        resolve_model(str(tmp_path))
    assert caught.value.code == "model.no_config" and "adapter" in caught.value.hint

    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text(), encoding="utf-8")
    assert resolve_model(str(tmp_path)) == tmp_path
    with pytest.raises(WhetError) as caught:
        resolve_model(str(tmp_path), weights=True)
    assert caught.value.code == "model.no_weights"
    assert resolve_model(str(tiny_model), weights=True) == tiny_model


def test_broken_config_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{broken", encoding="utf-8")
    with pytest.raises(WhetError, match="is not JSON"):
        read_model_facts(tmp_path)
    with pytest.raises(WhetError, match="states no hidden_size"):
        facts_of({"model_type": "bert-like"}, tmp_path)
