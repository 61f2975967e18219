"""A model switched to answering generates fast, and back in training it is what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from whet.engine.models.fast_path import program_of
from whet.engine.python_api.fast_language_model import FastLanguageModel
from whet.engine.python_api.notes import WhetNote

PROMPT = torch.tensor([[5, 6, 7, 8]])


def load(path: Path, **options: Any) -> Any:
    return FastLanguageModel.from_pretrained(str(path), load_in_4bit=False, **options)[0]


def adapted(path: Path) -> Any:
    model = FastLanguageModel.get_peft_model(load(path), r=4)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_B" in name:
                param.normal_(std=0.1)
    return model


@pytest.mark.parametrize("make", [load, adapted])
def test_answers_are_transformers_own_and_training_goes_on_as_before(tiny_llama: Path, make: Any) -> None:
    model = make(tiny_llama)
    trained = [name for name, param in model.named_parameters() if param.requires_grad]
    assert trained
    expected = model.eval().generate(PROMPT, max_new_tokens=9, do_sample=False)
    FastLanguageModel.for_inference(model)
    assert torch.equal(model.generate(PROMPT, max_new_tokens=9, do_sample=False), expected)
    program = program_of(model)
    assert program is not None and program.decoding is not None and program.decoding.steps > 0
    FastLanguageModel.for_training(model)
    assert program_of(model) is (program if make is adapted else None)
    assert program.decoding is None and "generate" not in vars(model)
    assert [name for name, param in model.named_parameters() if param.requires_grad] == trained
    loss = model(input_ids=PROMPT, labels=PROMPT).loss
    loss.backward()
    FastLanguageModel.for_inference(model)
    assert torch.equal(model.generate(PROMPT, max_new_tokens=9, do_sample=False), expected)


def test_a_model_that_became_another_is_read_anew(tiny_llama: Path) -> None:
    model = adapted(tiny_llama)
    merged = model.merge_and_unload()
    FastLanguageModel.for_inference(merged)
    own = type(merged).generate(merged, PROMPT, max_new_tokens=9, do_sample=False)
    assert torch.equal(merged.generate(PROMPT, max_new_tokens=9, do_sample=False), own)
    program = program_of(merged)
    assert program is not None and program.decoding is not None


def test_a_model_without_fused_layers_says_why(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    model.config.attention_dropout = 0.1
    with pytest.warns(WhetNote, match="attention_dropout"):
        FastLanguageModel.for_inference(model)
    assert any(param.requires_grad for param in model.parameters())
    assert model.generate(PROMPT, max_new_tokens=3, do_sample=False).shape[1] > PROMPT.shape[1]
