"""Loading, adapting and switching modes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from whet.engine import FastLanguageModel
from whet.engine.errors import WhetError
from whet.engine.python_api.checkpointing import is_checkpointing
from whet.engine.python_api.load_options import choose_precision
from whet.engine.python_api.notes import WhetNote

CPU = not torch.cuda.is_available()


def load(path: Path | str, **options: Any) -> tuple[Any, Any]:
    return FastLanguageModel.from_pretrained(str(path), **{"load_in_4bit": False, **options})


def kinds(model: Any) -> set[str]:
    return {type(module).__name__ for module in model.modules() if "Linear" in type(module).__name__}


@pytest.mark.skipif(not CPU, reason="about machines without a GPU")
def test_dtype_none_follows_the_hardware(tiny_llama: Path) -> None:
    assert load(tiny_llama)[0].dtype == torch.float32


def test_four_bits_are_the_default(tiny_llama: Path) -> None:
    model, _ = FastLanguageModel.from_pretrained(str(tiny_llama))
    assert "Linear4bit" in kinds(model)


def test_a_quantised_checkpoint_is_not_quantised_twice(tiny_llama: Path, tmp_path: Path) -> None:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")
    stored = AutoModelForCausalLM.from_pretrained(
        tiny_llama, quantization_config=config, device_map={"": "cpu"}
    )
    stored.save_pretrained(tmp_path)
    load(tiny_llama)[1].save_pretrained(tmp_path)
    model, _ = FastLanguageModel.from_pretrained(str(tmp_path), load_in_4bit=True)
    assert model.config.quantization_config.bnb_4bit_quant_type == "fp4"
    ids = torch.tensor([[1, 2, 3]])
    assert torch.allclose(model(ids).logits.float(), stored(ids).logits.float(), atol=1e-3)


@pytest.mark.parametrize(
    ("switches", "held"),
    [
        ((None, False, False, False, None), "nf4"),
        ((True, False, False, False, None), "nf4"),
        ((False, False, False, False, None), "16bit"),
        ((None, True, False, False, None), "int8"),
        ((None, False, True, False, None), "16bit"),
        ((None, False, False, False, None, True), "fp8"),
        ((None, False, False, True, None), "trained"),
        ((False, False, False, False, "bitsandbytes"), "stored"),
    ],
)
def test_how_the_base_is_held(switches: tuple[Any, ...], held: str) -> None:
    assert choose_precision(*switches) == held


def test_two_precisions_contradict() -> None:
    with pytest.raises(WhetError, match="load_in_4bit=True and load_in_8bit=True"):
        choose_precision(True, True, False, False, None)


def test_full_finetuning_trains_everything_in_fp32(tiny_llama: Path) -> None:
    with pytest.warns(WhetNote, match="full_finetuning"):
        model, _ = FastLanguageModel.from_pretrained(str(tiny_llama), load_in_4bit=True, full_finetuning=True)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


def test_an_unknown_hub_id_offline_names_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_OFFLINE", "1")
    with pytest.raises(WhetError, match="WHET_OFFLINE") as refused:
        FastLanguageModel.from_pretrained("unsloth/none-such-8B-bnb-4bit")
    assert refused.value.code == "model.not_found"


def test_tokens_in_code_are_refused(tiny_llama: Path) -> None:
    with pytest.raises(WhetError, match="HF_TOKEN"):
        load(tiny_llama, token="hf_secret")


def test_arguments_of_another_engine_are_set_aside_aloud(tiny_llama: Path) -> None:
    with pytest.warns(WhetNote, match="gpu_memory_utilization"):
        load(tiny_llama, gpu_memory_utilization=0.5)
    with pytest.raises(WhetError, match="max_seq_length"):
        load(tiny_llama, max_seq_lenth=12)


def test_the_seed_decides_the_adapter(tiny_llama: Path) -> None:
    def first_weights(seed: int) -> torch.Tensor:
        model = FastLanguageModel.get_peft_model(load(tiny_llama)[0], r=4, random_state=seed)
        return next(p for n, p in model.named_parameters() if "lora_A" in n)

    assert torch.equal(first_weights(1), first_weights(1))
    assert not torch.equal(first_weights(1), first_weights(2))


def test_embedding_targets_are_trained_whole_aloud(tiny_llama: Path) -> None:
    with pytest.warns(WhetNote, match="embed_tokens and lm_head"):
        model = FastLanguageModel.get_peft_model(
            load(tiny_llama)[0], target_modules=["q_proj", "embed_tokens", "lm_head"]
        )
    config = model.peft_config["default"]
    assert set(config.target_modules) == {"q_proj"}
    assert set(config.modules_to_save) == {"embed_tokens", "lm_head"}


def test_adapter_options_that_would_change_nothing_pass_and_others_are_named(tiny_llama: Path) -> None:
    model, _ = load(tiny_llama)
    with pytest.raises(WhetError, match="layers_to_transform"):
        FastLanguageModel.get_peft_model(model, layers_to_transform=[0])
    with pytest.raises(WhetError, match="lora_alpha"):
        FastLanguageModel.get_peft_model(model, lora_alhpa=4)
    adapted = FastLanguageModel.get_peft_model(model, loftq_config={}, task_type="CAUSAL_LM")
    with pytest.raises(WhetError, match="already has an adapter"):
        FastLanguageModel.get_peft_model(adapted)


def test_unsloth_is_an_alias_for_checkpointing(tiny_llama: Path) -> None:
    with pytest.raises(WhetError, match="unsloht"):
        FastLanguageModel.get_peft_model(load(tiny_llama)[0], use_gradient_checkpointing="unsloht")


def test_inference_and_back(tiny_llama: Path) -> None:
    model = FastLanguageModel.get_peft_model(
        load(tiny_llama)[0], r=4, lora_dropout=0.5, use_gradient_checkpointing="unsloth"
    )
    FastLanguageModel.for_training(model)
    assert model.training
    assert is_checkpointing(model)
    FastLanguageModel.for_inference(model)
    assert not model.training
    assert not is_checkpointing(model)
    assert model.config.use_cache
    FastLanguageModel.for_training(model)
    assert model.training
    assert is_checkpointing(model)


def test_a_saved_adapter_loads_with_its_base_and_trains_on(tiny_llama: Path, tmp_path: Path) -> None:
    model, tokenizer = load(tiny_llama)
    model = FastLanguageModel.get_peft_model(model, r=4)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_B" in name:
                param.fill_(0.02)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    named = json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(named) == tiny_llama
    again, _ = load(tmp_path)
    assert isinstance(again, PeftModel)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(again.eval()(ids).logits, model.eval()(ids).logits, atol=1e-5)
    assert any(p.requires_grad for p in again.parameters())
