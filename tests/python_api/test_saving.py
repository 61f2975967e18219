"""Saving from the model instance: what is refused, and that what is written loads elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from safetensors.torch import load_file
from support.hub_standin import StandIn, in_place_of_the_hub
from support.tiny_models import build_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from whet.engine import FastLanguageModel, SFTConfig, SFTTrainer, get_chat_template
from whet.engine.errors import WhetError
from whet.engine.export.targets.four_bit import write_four_bit
from whet.engine.export.targets.fp8 import write_fp8
from whet.engine.python_api.notes import WhetNote
from whet.engine.python_api.saving import gguf_types

IDS = torch.tensor([[9, 8, 7, 6, 5]])


def adapted(path: Path, **options: Any) -> tuple[Any, Any]:
    """A model whose adapter changes its answers."""
    model, tokenizer = FastLanguageModel.from_pretrained(str(path), **{"load_in_4bit": False, **options})
    model = FastLanguageModel.get_peft_model(model, r=4, lora_alpha=8)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_B" in name:
                param.normal_(std=0.1)
    return model.eval(), tokenizer


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


@pytest.mark.parametrize("in_4bit", [False, True])
def test_merged_weights_answer_as_the_adapter_on_the_16_bit_base(
    in_4bit: bool, tiny_llama: Path, tmp_path: Path
) -> None:
    reference = logits(adapted(tiny_llama)[0])
    base = logits(AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32))
    model, tokenizer = adapted(tiny_llama, load_in_4bit=in_4bit)
    tokenizer = get_chat_template(tokenizer, "zephyr")
    out = model.save_pretrained_merged(tmp_path / "out", tokenizer, save_method="merged_16bit")
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.dtype == torch.bfloat16
    error = (logits(merged.float()) - reference).abs().max()
    assert error < 0.03 * (base - reference).abs().max()
    again = AutoTokenizer.from_pretrained(out)
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert "generation %}" not in again.chat_template
    assert again.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(
        chat, tokenize=False
    )


def test_a_fully_trained_model_is_written_whole(tiny_llama: Path, tmp_path: Path) -> None:
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_llama), full_finetuning=True)
    with torch.no_grad():
        model.lm_head.weight.add_(0.25)
    model.save_pretrained_merged(tmp_path / "out", tokenizer)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.dtype == torch.bfloat16
    assert torch.equal(again.lm_head.weight, model.lm_head.weight.bfloat16())


def test_the_adapter_alone(tiny_llama: Path, tmp_path: Path) -> None:
    model, tokenizer = adapted(tiny_llama)
    model.save_pretrained_merged(tmp_path, tokenizer, save_method="lora")
    again, _ = FastLanguageModel.from_pretrained(str(tmp_path), load_in_4bit=False)
    assert torch.allclose(logits(again.eval()), logits(model), atol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=1e-5)
    assert not (tmp_path / "model.safetensors").exists()


def test_methods_are_on_the_instance_and_the_class_stays_as_it_was(tiny_llama: Path) -> None:
    adapted(tiny_llama)
    assert not hasattr(LlamaForCausalLM, "save_pretrained_merged")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"save_method": "merged_8bit"}, "Did you mean 'merged_"),
        ({"save_method": "merged16bit"}, "Did you mean 'merged_16bit'"),
        ({"maximum_memory_usage": 75}, "maximum_memory_usage=75"),
        ({"maximum_memory_usage": 0}, "maximum_memory_usage=0"),
        ({"token": "hf_secret"}, "HF_TOKEN"),
    ],
)
def test_refusals_say_what_to_do(options: dict, words: str, tiny_llama: Path, tmp_path: Path) -> None:
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_llama), load_in_4bit=False)
    with pytest.raises(WhetError, match=words):
        model.save_pretrained_merged(tmp_path / "out", tokenizer, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["merged_4bit", "merged_4bit_forced", "merged_fp8"])
def test_few_bits_are_the_merged_weights_rounded(
    method: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = build_tiny_model(tmp_path / "base", "llama", wide=True, dtype="bfloat16")
    model, tokenizer = adapted(path)
    whole = model.save_pretrained_merged(tmp_path / "whole", tokenizer)
    out = model.save_pretrained_merged(tmp_path / "out", tokenizer, method, maximum_memory_usage=0.5)
    said = [str(one.message) for one in recwarn if issubclass(one.category, WhetNote)]
    assert any("merged_4bit rounds" in words for words in said) is (method == "merged_4bit")
    write = write_fp8 if method == "merged_fp8" else write_four_bit
    write(whole, tmp_path / "again")
    again, written = (load_file(tmp_path / name / "model.safetensors") for name in ("again", "out"))
    assert again.keys() == written.keys()
    assert all(torch.equal(again[name].view(torch.uint8), written[name].view(torch.uint8)) for name in again)
    assert (out / "tokenizer.json").is_file()
    assert {one.name for one in tmp_path.iterdir()} == {"base", "whole", "out", "again"}
    shift = (logits(AutoModelForCausalLM.from_pretrained(out, dtype="auto")) - logits(model)).abs().mean()
    assert shift < logits(model).abs().mean()


def test_the_adapter_as_a_gguf(tmp_path: Path) -> None:
    model, tokenizer = adapted(build_tiny_model(tmp_path / "model", "llama", wide=True))
    result = model.save_pretrained_gguf(tmp_path / "gguf", tokenizer, save_method="lora")
    assert [verdict.proofs[0].name for verdict in result.verdicts] == ["adapter"]
    assert result.status == "pass" and result.paths["adapter_gguf"].suffix == ".gguf"
    with pytest.raises(WhetError, match="Choices: merged, lora"):
        model.save_pretrained_gguf(tmp_path / "other", tokenizer, save_method="q8_0")


def test_gguf_files_are_written_and_proven(tmp_path: Path) -> None:
    path = build_tiny_model(tmp_path / "model", "llama", wide=True)
    model, tokenizer = adapted(path)
    result = model.save_pretrained_gguf(tmp_path / "gguf", tokenizer, quantization_method=["q8_0", "f16"])
    assert {"q8_0", "f16"} <= set(result.paths)
    assert all(file.is_file() for file in result.paths.values())
    assert [verdict.proofs[0].name for verdict in result.verdicts].count("merge") == 1
    assert len(result.verdicts) == 3
    failures = [proof for verdict in result.verdicts for proof in verdict.failures()]
    assert not failures
    assert (tmp_path / "gguf" / "Modelfile").is_file()


@pytest.mark.slow  # 20 to 30 seconds: `make slow`
def test_small_types_learn_from_the_trainers_rows(tmp_path: Path) -> None:
    path = build_tiny_model(tmp_path / "model", "llama", wide=True)
    model, tokenizer = adapted(path)
    with pytest.raises(WhetError, match="no rows") as caught:
        model.save_pretrained_gguf(tmp_path / "gguf", tokenizer, "iq2_xxs")
    assert caught.value.code == "gguf.needs_importance_matrix" and "imatrix=" in caught.value.hint
    rows = [{"text": f"The moon pulls the sea {number} times."} for number in range(8)]
    config = SFTConfig(max_steps=1, per_device_train_batch_size=1, output_dir=str(tmp_path / "run"))
    SFTTrainer(model=model, tokenizer=tokenizer, args=config, train_dataset=rows).train()
    result = model.save_pretrained_gguf(tmp_path / "gguf", tokenizer, "iq2_xxs")
    fields = GGUFReader(result.paths["iq2_xxs"]).fields
    assert fields["quantize.imatrix.dataset"].contents() == "rows trained on"


def test_gguf_names() -> None:
    assert gguf_types("q4_k_m") == ["q4_k_m"]
    assert gguf_types(["Q8_0", "f16"]) == ["q8_0", "f16"]
    names = ["not_quantized", "fast_quantized", "quantized", "q4_k", "q5_k", "q2_k_l", "iq2_xxs", "q3_k_xs"]
    types = ["f16", "q8_0", "q4_k_m", "q4_k_m", "q5_k_m", "q2_k_l", "iq2_xxs", "iq3_xs"]
    assert [gguf_types(name) for name in names] == [[name] for name in types]
    with pytest.raises(WhetError, match="q4_k_m"):
        gguf_types("q4km")


def test_pushing_is_private_and_sends_what_saving_writes(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = adapted(tiny_llama)
    with in_place_of_the_hub(StandIn(), monkeypatch) as hub:
        assert model.push_to_hub_merged("me/tiny", tokenizer) == f"{hub.url}/me/tiny"
        assert model.push_to_hub("me/adapter", tokenizer) == f"{hub.url}/me/adapter"
        model.push_to_hub_merged("me/fp8", tokenizer, save_method="merged_fp8", maximum_memory_usage=0.5)
    assert all(hub.repositories[name].private for name in ("me/tiny", "me/adapter", "me/fp8"))
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(hub.names("me/tiny"))
    assert {"adapter_model.safetensors", "tokenizer.json"} <= set(hub.names("me/adapter"))
    assert "model.safetensors" not in hub.names("me/adapter")
    assert b"compressed-tensors" in hub.content("me/fp8", "config.json")
    with pytest.raises(WhetError, match="HF_TOKEN"):
        model.push_to_hub_gguf("me/tiny", tokenizer, token="hf_secret")
