"""Answers to the same prompts: greedy, reproducible, ended by the template's end of turn."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_models import build_tiny_model

from whet.engine.methods.sampling import answers, end_of_turn_id, prompt_ids, stop_ids
from whet.engine.models.fast_path import apply_fast_path, program_of
from whet.engine.models.fast_path.decoding import Decoding
from whet.engine.models.loading import ModelHandle, Precision, load_model
from whet.engine.recipe import SamplingSection


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return load_model(build_tiny_model(tmp_path_factory.mktemp("model") / "llama"), Precision())


def ask(handle: ModelHandle, **settings: Any) -> list[str]:
    section = SamplingSection(prompts=["What is a token?", "Who are you?"], max_new_tokens=12, **settings)
    return [answer.text for answer in answers(handle, section, chat=True, seed=1)]


def test_stops_come_from_config_tokenizer_and_template(handle: ModelHandle) -> None:
    tokenizer = handle.tokenizer
    turn_end, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|turn_end|>", "<|endoftext|>"))
    assert end_of_turn_id(tokenizer) == turn_end
    assert stop_ids(handle.model, tokenizer) == sorted([turn_end, end])


def test_the_template_writes_bos_once(handle: ModelHandle) -> None:
    ids = prompt_ids(handle.tokenizer, "hello", "be kind", chat=True)
    text = handle.tokenizer.decode(ids)
    assert text == "<|begin|><|system|>\nbe kind<|turn_end|>\n<|user|>\nhello<|turn_end|>\n<|assistant|>\n"
    plain = prompt_ids(handle.tokenizer, "hello", None, chat=False)
    assert handle.tokenizer.decode(plain) == "<|begin|>hello"


def test_greedy_is_reproducible_and_follows_the_logits(handle: ModelHandle) -> None:
    first, second = ask(handle), ask(handle)
    assert first == second and all(first)
    ids = prompt_ids(handle.tokenizer, "What is a token?", None, chat=True)
    begun = len(ids)
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(handle.model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert str(handle.tokenizer.decode(ids[begun:], skip_special_tokens=True)).strip() == first[0]


def test_temperature_draws_the_same_numbers_each_time(handle: ModelHandle) -> None:
    assert ask(handle, temperature=2.0) == ask(handle, temperature=2.0) != ask(handle)


def test_on_the_fast_path_the_answers_are_the_same_and_the_cache_is_let_go(
    handle: ModelHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = replace(handle, model=copy.deepcopy(handle.model).requires_grad_(False))
    apply_fast_path(fast.model, fast.dtype)
    program = program_of(fast.model)
    assert program is not None
    steps: list[int] = []
    step = Decoding.step

    def counted(self: Decoding, *args: Any) -> torch.Tensor:
        steps.append(self.rows)
        return step(self, *args)

    monkeypatch.setattr(Decoding, "step", counted)
    assert ask(fast) == ask(handle) and ask(fast, temperature=2.0) == ask(handle, temperature=2.0)
    assert len(steps) > 20 and program.decoding is None


def test_random_numbers_and_training_mode_are_left_alone(handle: ModelHandle) -> None:
    handle.model.train()
    before = torch.random.get_rng_state()
    ask(handle, temperature=1.0)
    assert torch.equal(before, torch.random.get_rng_state())
    assert handle.model.training
    handle.model.eval()


def test_an_answer_says_whether_it_ended_by_itself(tmp_path: Path) -> None:
    handle = load_model(build_tiny_model(tmp_path / "model"), Precision())
    section = SamplingSection(prompts=["hello"], max_new_tokens=5)
    (cut,) = answers(handle, section, chat=True)
    assert not cut.stopped
    turn_end = handle.tokenizer.convert_tokens_to_ids("<|turn_end|>")
    with torch.no_grad():
        handle.model.lm_head.weight.zero_()
        handle.model.model.norm.weight.fill_(0.0)  # all logits equal...
        handle.model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(handle.tokenizer)))
        handle.model.lm_head.bias[turn_end] = 1.0  # ...but the end of turn's
    (ended,) = answers(handle, section, chat=True)
    assert ended.stopped and ended.text == ""
